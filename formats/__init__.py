"""How models are written down: their weights, their text, their adapters; what inference reads and training writes."""

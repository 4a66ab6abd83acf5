"""How a gradient becomes a change of the model: learning rates by step, AdamW and Muon over flat tensors."""

"""Constrained output: grammars as requests bring them, and what of the vocabulary may come next."""

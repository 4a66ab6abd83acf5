"""Decoding with transformers: for models that are not computed here."""

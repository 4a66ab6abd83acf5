"""Encoders: models that make vectors of texts."""

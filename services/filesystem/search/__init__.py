"""Finds files by what they say: by meaning, over pieces of their text, and by patterns."""

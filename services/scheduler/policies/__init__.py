"""Whose turn is next: one policy a module."""

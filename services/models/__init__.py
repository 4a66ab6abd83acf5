"""The model store: pulls models, keeps them by content, finds them by name."""

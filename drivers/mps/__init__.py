"""The driver of Apple's GPUs."""

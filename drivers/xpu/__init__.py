"""The driver of Intel's GPUs."""

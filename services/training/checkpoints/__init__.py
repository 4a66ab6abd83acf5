"""Checkpoints of training jobs: copied to shared memory, and written by a process that nobody waits for."""

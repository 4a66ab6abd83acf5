"""Runs models: reads checkpoints, batches requests continuously, samples, streams."""

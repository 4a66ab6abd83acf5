"""Continuous batching: which tokens a step computes, and how the next ones are chosen."""

"""Benchmarks: one folder a subject, each prints a table of ratios against its peers, measured in one run."""

"""The process table."""

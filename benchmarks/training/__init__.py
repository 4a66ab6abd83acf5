"""Training: what its parts cost beside those that others have made."""

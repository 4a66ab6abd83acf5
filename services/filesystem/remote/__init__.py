"""Other storage in the tree: whatever fsspec reaches, mounted by its URL, behind a cache."""

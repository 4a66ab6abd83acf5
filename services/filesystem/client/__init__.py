"""The tree of a node for programs in Python, through fsspec: `mk:///data/x`."""

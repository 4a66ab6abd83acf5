"""Maps: N items in M tasks over K workers, each result once."""

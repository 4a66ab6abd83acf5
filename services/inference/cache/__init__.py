"""The bookkeeping of the paged KV cache: which page holds what, for whom, and what may be forgotten; no tensors."""

"""The model as it is trained: forward, loss and gradients over whole rows, and what becomes of it on the disk."""

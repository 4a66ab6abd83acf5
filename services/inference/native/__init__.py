"""The decoder in our own CPU kernels: quantised weights as they are, pages read where they lie."""

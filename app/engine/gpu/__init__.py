"""Batches on a GPU: padding, pinned memory, CUDA graphs."""

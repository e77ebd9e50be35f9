"""Data sets as batches, device-resident or streamed from files. Knows nothing of sparsity or training."""

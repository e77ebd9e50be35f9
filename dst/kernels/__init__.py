"""Real sparse compute on a CPU: C kernels, built once for a kind of machine. Knows tensors only."""

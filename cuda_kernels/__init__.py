"""CUDA kernels for self-selected attention: not written yet."""

"""The operations in Triton, and whole optimizer steps; needs `triton` and a CUDA device."""

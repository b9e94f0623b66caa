"""Sparse coding in a fixed dictionary: the latents that a row uses, and their values."""

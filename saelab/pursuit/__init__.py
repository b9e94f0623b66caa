"""Sparse coding in a fixed dictionary: which latents a row uses, and with what values."""

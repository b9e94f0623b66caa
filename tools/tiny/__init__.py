"""The makers of the tiny language model's weights and of their tables."""

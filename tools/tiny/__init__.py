"""Makers of the tiny language model's weights and their tables."""

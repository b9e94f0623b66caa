"""A run in its language model: its SAE where it reads and writes, and its text."""

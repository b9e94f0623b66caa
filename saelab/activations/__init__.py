"""Activations on disk: the format, what writes it, what reads it, and the harvest that fills it."""

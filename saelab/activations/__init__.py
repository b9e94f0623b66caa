"""Activations on disk: the file format, writing, reading, and harvesting."""

"""Activations on disk: the file format, writing, reading, and harvesting."""

POOL_ROWS = 2**16
"""Rows that are shuffled together; here, where options find it without numpy."""

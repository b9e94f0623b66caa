"""Makers of the files that saelab ships; not installed with it."""

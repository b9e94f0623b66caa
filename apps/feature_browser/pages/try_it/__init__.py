"""Prompts that the reader types."""

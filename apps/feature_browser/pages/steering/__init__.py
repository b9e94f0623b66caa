"""Steering: scores, and experiments by hand."""

"""Sparse operations in plain torch, on any device."""

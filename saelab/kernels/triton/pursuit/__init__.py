"""Matching pursuit's steps."""

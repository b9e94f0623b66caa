"""A whole optimizer step."""

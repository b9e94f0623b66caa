"""The welcome to a run."""

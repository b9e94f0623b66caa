"""The codes of a fused step, one file for each shape."""

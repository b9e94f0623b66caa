"""The codes of a fused step, one file per shape of codes."""

"""The page Try it: prompts that the reader types."""

"""A transformer's linear paths: one description for all architectures, and one reader per layout.

`paths` is the description, and all that attribution knows of a model. Each reader fills it from a
checkpoint's parameters: `gpt2`, `gpt_neox`, and `llama` with its relatives.
"""

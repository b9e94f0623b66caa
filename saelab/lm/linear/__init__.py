"""A transformer's linear paths: one description for all architectures, and how each fills it in.

`paths` is the description, and all that attribution knows of a model. One file a layout reads it
from a checkpoint's parameters: `gpt2`, `gpt_neox`, and `llama` with everything that resembles it.
"""

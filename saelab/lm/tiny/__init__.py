"""The language model shipped with saelab, and the labelled synthetic language it speaks."""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).resolve().parent / "weights"
"""A local Hugging Face model directory: configuration, tokenizer, bf16 weights, model card."""

N_CTX = 128
"""Tokens in one document, which is also the model's context."""

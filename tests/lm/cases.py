"""Small random models of several architectures."""

from typing import Any

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 13,
    "max_position_embeddings": 32,
}
GROUPED: dict[str, Any] = {**SHAPE, "num_key_value_heads": 2}


def save(directory, checkpoint, config):
    """A random model of this configuration with the shared checkpoint's tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(directory)

"""A random GPT-2 of any size with a tokenizer and a text of its words, for measurements."""

from pathlib import Path

import numpy as np
import torch

from saelab.config import UsageError

HEAD = 64
WORDS_A_LINE = 400
SKEW = 1.1
"""Exponent of the words' frequencies, near that of natural text."""


def save_random_model(
    directory: Path, *, n_layers: int, d_model: int, d_vocab: int, length: int, n_words: int
) -> Path:
    """Write a random GPT-2 with its word tokenizer, and `text.txt`; returns the text's path.

    Args:
        directory: a new directory.
        n_layers: of the model.
        d_model: a multiple of 64, the width of a head.
        d_vocab: words, and two special tokens.
        length: positions of a context.
        n_words: words of the text; each is one token.

    Raises:
        UsageError: the sizes make no model.
    """
    if d_model % HEAD:
        raise UsageError(f"d_model={d_model} is no multiple of {HEAD}, the width of a head.")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = ["<bos>", "<unk>", *(f"w{i}" for i in range(d_vocab - 2))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", unk_token="<unk>")
    config = GPT2Config(
        vocab_size=d_vocab,
        n_positions=length,
        n_embd=d_model,
        n_layer=n_layers,
        n_head=d_model // HEAD,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    ranks = np.random.default_rng(0).zipf(SKEW, n_words) % (d_vocab - 2)
    lines = [
        " ".join(f"w{i}" for i in ranks[start : start + WORDS_A_LINE])
        for start in range(0, n_words, WORDS_A_LINE)
    ]
    path = directory / "text.txt"
    path.write_text("\n".join(lines))
    return path

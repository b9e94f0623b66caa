"""A language model that looks up what it says, in activations of one site, by rules of a test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from saelab.lm.protocol import ModelInfo, ModelOutput

CPU = torch.device("cpu")
HOOK = "blocks.0.hook_resid_post"


class WordTokenizer:
    """A tokenizer of whole words."""

    unknown_id = None

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self.table = SimpleNamespace(names=self.words, text=lambda ids: self.text(ids))

    def text(self, ids) -> str:
        return " ".join(self.words[i] for i in ids)

    def token(self, token_id: int) -> str:
        return self.words[token_id]

    def encode(self, text: str) -> list[int]:
        return [self.words.index(word) for word in text.split()]

    def chat(self, messages):
        raise NotImplementedError


@dataclass
class LookupModel:
    """x is a row of `embedding` for each token; `says` makes logits from tokens and x, both
    `[batch pos ...]`."""

    words: Sequence[str]
    embedding: torch.Tensor
    says: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    device: Any = field(init=False, default=CPU)
    tokenizer: Any = field(init=False, default=None)
    info: Any = field(init=False, default=None)

    def __post_init__(self):
        self.tokenizer = WordTokenizer(self.words)
        self.info = ModelInfo(
            name="lookup", architecture="lookup", n_layers=1, d_model=self.embedding.shape[1],
            n_heads=1, d_head=1, d_vocab=len(self.words), n_ctx=128, weights_digest="",
            tokenizer_digest="",
        )  # fmt: skip

    def capture(self, tokens, hooks):
        return dict.fromkeys(hooks, self.embedding[tokens])

    def run(self, tokens, *, edits=None, hooks=()):
        x = self.embedding[tokens]
        x = x if not edits else edits[HOOK](x)
        return ModelOutput(self.says(tokens, x), dict.fromkeys(hooks, x))

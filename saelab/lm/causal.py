"""A causal language model that answers chats: greedily, or by the chance of each of some words."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saelab.config import UsageError
from saelab.lm.checkpoint import read_checkpoint
from saelab.lm.load import resolve_device
from saelab.lm.tokenizer import HuggingFaceTokenizer

Messages = Sequence[Mapping[str, str]]


class TooLongError(Exception):
    """The chat, and room for an answer, has more tokens than the model reads."""


class CausalChat:
    """The checkpoint called `name`, run on one chat at a time.

    What a chat has in common with the one before it is computed once. On a GPU it computes in
    bfloat16.

    Raises:
        UsageError: as for `read_checkpoint`.
    """

    def __init__(self, name: str, *, device: str = "auto") -> None:
        self.device = resolve_device(device)
        dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        model, tokenizer = read_checkpoint(name, dtype=dtype, attention="sdpa")
        self._model: Any = model.to(self.device).eval()
        self._hf: Any = tokenizer
        self._tokenizer = HuggingFaceTokenizer(tokenizer)
        config = self._model.config.get_text_config()
        self.longest = int(getattr(config, "max_position_embeddings", 0) or 2**31)
        self._seen: list[int] = []
        self._cache: Any = None

    def answer(self, messages: Messages, max_tokens: int) -> tuple[str, int, int]:
        """The most likely continuation, and the numbers of tokens of the chat and of it.

        Raises:
            TooLongError: the model does not read so many tokens.
        """
        ids = self._ids(messages, max_tokens)
        ends, written = self._ends(), []
        logits = self._logits(ids)
        while len(written) < max_tokens:
            token = int(logits.argmax())
            if token in ends:
                break
            written.append(token)
            logits = self._logits([*ids, *written])
        text = self._hf.decode(written, skip_special_tokens=True)
        return text, len(ids), len(written)

    def chances(self, messages: Messages, words: Sequence[str]) -> tuple[list[float], int]:
        """Each word's share of the next token's probability that all words have together.

        A word counts by its first token, in small letters or with a capital, with or without a
        space before it. Also returns the number of tokens of the chat.

        Raises:
            TooLongError: the model does not read so many tokens.
        """
        ids = self._ids(messages, 1)
        logs = self._logits(ids).double().log_softmax(0)
        found = [logs[sorted(first)].logsumexp(0) for first in self._first_tokens(words)]
        return torch.stack(found).softmax(0).tolist(), len(ids)

    def _first_tokens(self, words: Sequence[str]) -> list[set[int]]:
        """The tokens with which each word, and no other of them, may begin."""
        forms = [[f"{gap}{w}" for gap in ("", " ") for w in (x.lower(), x.title())] for x in words]
        first = [{ids[0] for f in each if (ids := self._tokenizer.encode(f))} for each in forms]
        own = [one.difference(*first[:i], *first[i + 1 :]) for i, one in enumerate(first)]
        if not all(own):
            raise UsageError(
                f"The tokenizer of {self._hf.name_or_path} has the same first token for several of "
                f"{', '.join(words)}; take another model."
            )
        return own

    def _ids(self, messages: Messages, room: int) -> list[int]:
        ids = self._tokenizer.encode(self._text(messages))
        begin = self._hf.bos_token_id
        if begin is not None and ids[:1] != [begin]:
            ids = [begin, *ids]
        if len(ids) + room > self.longest:
            raise TooLongError(f"{len(ids)} tokens and {room} for the answer, of {self.longest}")
        return ids

    def _text(self, messages: Messages) -> str:
        """The chat as text: by the model's template if it has one, else one part after another."""
        if not self._hf.chat_template:
            return "\n\n".join([*(message["content"] for message in messages), ""])
        try:
            return self._tokenizer.chat_text(messages, answer=True)
        except UsageError:
            # Some templates know no system prompt.
            text = "\n\n".join(message["content"] for message in messages)
            return self._tokenizer.chat_text([{"role": "user", "content": text}], answer=True)

    def _ends(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        several = ends if isinstance(ends, list) else [ends]
        return {end for end in (*several, self._hf.eos_token_id) if end is not None}

    @torch.inference_mode()
    def _logits(self, ids: list[int]) -> Tensor:
        """The logits after `ids`; only those that the last call did not read are read."""
        known = 0
        for one, other in zip(ids[:-1], self._seen, strict=False):
            if one != other:
                break
            known += 1
        known = self._cut(known)
        new = torch.tensor([ids[known:]], device=self.device)
        self._seen = []  # What an interruption leaves is not used.
        out = self._model(
            new, past_key_values=self._cache, use_cache=True, logits_to_keep=1, return_dict=True
        )
        self._cache, self._seen = out.past_key_values, ids
        return out.logits[0, -1]

    def _cut(self, known: int) -> int:
        """Cut what is kept to the first `known` tokens; returns how many are kept."""
        if known == len(self._seen):
            return known
        try:
            if known:
                self._cache.crop(known)
                return known
        except (AttributeError, ValueError, NotImplementedError):
            # A cache of a sliding window, or of a state, cannot go back.
            pass
        self._cache = None
        return 0

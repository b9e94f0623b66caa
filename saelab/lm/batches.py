"""Many texts to tokens at once, on all cores where the tokenizers library reads them."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray

from saelab.config import UsageError
from saelab.lm.protocol import Encoder


def encode_batch(tokenizer: Encoder, texts: Sequence[str]) -> list[Int32[ndarray, " token"]]:
    """The ids that `tokenizer.encode` gives for each text."""
    backend = _backend(tokenizer)
    if backend is None:
        return [np.asarray(tokenizer.encode(text), dtype=np.int32) for text in texts]
    found = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.asarray(each.ids, dtype=np.int32) for each in found]


def encode_with_offsets(
    tokenizer: Encoder, texts: Sequence[str]
) -> list[tuple[Int32[ndarray, " token"], Int64[ndarray, "token 2"]]]:
    """The ids of each text, and the characters `[start, stop)` of the text that each token covers.

    Raises:
        UsageError: the tokenizer gives no offsets.
    """
    backend = _backend(tokenizer)
    if backend is None:
        raise UsageError(
            "This model's tokenizer cannot say where its tokens stand in a text, which labels and "
            "roles need; use a checkpoint with a tokenizer.json."
        )
    found = backend.encode_batch(list(texts), add_special_tokens=False)
    return [
        (
            np.asarray(each.ids, dtype=np.int32),
            np.asarray(each.offsets, dtype=np.int64).reshape(-1, 2),
        )
        for each in found
    ]


def parts_of(tokenizer: Encoder) -> dict[str, Any] | None:
    """The tokenizer's JSON form, as the tokenizers library writes it; None if it has none."""
    backend = _backend(tokenizer)
    return None if backend is None else json.loads(backend.to_str())


def _backend(tokenizer: Encoder) -> Any | None:  # noqa: ANN401
    backend = getattr(tokenizer, "backend", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    return backend

"""Memory of a language model's passes, estimated from its shape."""

from typing import Protocol, runtime_checkable

import torch

from saelab.lm.predictions import NUMBERS_AT_ONCE
from saelab.lm.protocol import ActivationSource
from saelab.lm.replay import KEPT
from saelab.resources import batch_budget

WIDE, HEADS = 24, 5
"""Numbers per position that a layer has in memory at once: WIDE of d_model (the stream, q, k, v, an
MLP of four times the width, and their temporaries) and HEADS attention patterns per head."""
KEPT_WIDE, KEPT_HEADS = 34, 4
"""The same for what every layer keeps for the backward pass."""
PIECES = 6
"""Copies of a piece of logits in memory at once."""
BYTES = 4
"""Bytes per number: norms, softmax and logits are float32 even in half precision."""
POSITIONS = {"cpu": 2**12, "cuda": 2**14}
"""Positions of a forward pass, at most: fewer leave a GPU waiting for Python."""
PASS_BYTES = 2**32
"""Memory of a forward pass, at most."""


@runtime_checkable
class Shaped(Protocol):
    """What the memory of a pass follows from."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        ...

    @property
    def n_heads(self) -> int:
        """Attention heads per layer."""
        ...


def forward_bytes(lm: ActivationSource, n_contexts: int, length: int) -> int:
    """Memory of a pass without gradients, beside the weights, in bytes."""
    return pass_bytes(lm.info, n_contexts, length)


def pass_bytes(shape: Shaped, n_contexts: int, length: int) -> int:
    """`forward_bytes` of any model of this shape."""
    return n_contexts * length * BYTES * (WIDE * shape.d_model + HEADS * shape.n_heads * length)


def backward_bytes(lm: ActivationSource, n_contexts: int, length: int) -> int:
    """Memory of a pass and its gradients, for which every layer keeps values, in bytes."""
    info = lm.info
    a_layer = KEPT_WIDE * info.d_model + KEPT_HEADS * info.n_heads * length
    kept = n_contexts * length * BYTES * a_layer * info.n_layers
    return kept + forward_bytes(lm, n_contexts, length)


def logits_bytes(lm: ActivationSource) -> int:
    """Memory of the pieces in which logits are made, in bytes; a piece has at least one row."""
    piece = max(NUMBERS_AT_ONCE.get(lm.device.type, NUMBERS_AT_ONCE["cpu"]), lm.info.d_vocab)
    return PIECES * BYTES * piece


def recorded_copies(device: torch.device) -> int:
    """How often what a pass captures is kept by recordings of passes (see `lm.replay`)."""
    return KEPT if device.type == "cuda" else 0


def contexts_at_once(
    lm: ActivationSource, length: int, *, most: int = 32, backward: bool = False
) -> int:
    """Contexts per batch if no size was given: `most`, or half of it, ... until a batch fits."""
    n, cost = most, backward_bytes if backward else forward_bytes
    budget = batch_budget(lm.device)
    while n > 1 and cost(lm, n, length) > budget:
        n //= 2
    return n


def pass_contexts(lm: ActivationSource, length: int) -> int:
    """Contexts per forward pass, at most.

    Free memory does not matter: another number rounds otherwise, and a run could not continue bit
    for bit.
    """
    n = max(1, POSITIONS.get(lm.device.type, POSITIONS["cpu"]) // length)
    while n > 1 and forward_bytes(lm, n, length) > PASS_BYTES:
        n //= 2
    return n

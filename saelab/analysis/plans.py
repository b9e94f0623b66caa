"""What steering and circuits take, said before they start: judged by shapes and by one pass."""

import time

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.lm.cost import backward_bytes, forward_bytes, logits_bytes
from saelab.lm.protocol import LanguageModel
from saelab.resources import Plan

DOUBLE = 8
"""Bytes of a number of the linear model that a circuit is taken apart in."""
PULLED = 12
"""Vectors of d_model that are in memory for each node and position while edges are computed."""
LOGITS = 24
"""Bytes of a logit while probabilities are made of it."""
CIRCUIT_PASSES = 100
"""Passes that a circuit takes the time of: the linear model, gradients, and the latents judged."""


@torch.no_grad()
def seconds_of_pass(lm: LanguageModel, tokens: Int[Tensor, "batch pos"]) -> float:
    """What one pass over these tokens takes, logits behind the last of them included."""
    started = 0.0
    for _ in range(2):  # What is done for the first time takes longer.
        started = time.perf_counter()
        float(lm.run(tokens).behind().logits().sum())
    return time.perf_counter() - started


def circuit_plan(lm: LanguageModel, tokens: Int[Tensor, " pos"], max_nodes: int) -> Plan:
    """The linear model's attention weights, its nodes' inputs, and passes with gradients."""
    info = lm.info
    attention = DOUBLE * info.n_layers * 4 * info.d_model * info.n_heads * info.d_head
    edges = PULLED * DOUBLE * max_nodes * len(tokens) * info.d_model
    return Plan(
        "circuit",
        lm.device,
        attention + edges + backward_bytes(lm, 1, len(tokens)) + logits_bytes(lm),
        "shorten the prompt, or lower --max-nodes",
        CIRCUIT_PASSES * seconds_of_pass(lm, tokens[None]),
    )


def steering_plan(
    lm: LanguageModel, tokens: Int[Tensor, "batch pos"], passes: float | int, length: int
) -> Plan:
    """So many passes over these tokens, each of which may grow to `length`."""
    logits = min(logits_bytes(lm), LOGITS * len(tokens) * length * lm.info.d_vocab)
    return Plan(
        "steer",
        lm.device,
        forward_bytes(lm, len(tokens), length) + logits,
        "take fewer samples, or a shorter prompt",
        passes * seconds_of_pass(lm, tokens),
    )

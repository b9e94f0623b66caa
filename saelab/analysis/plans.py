"""What steering and circuits will need, told before they start: from shapes and one pass."""

import time

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.lm.cost import backward_bytes, forward_bytes, logits_bytes
from saelab.lm.protocol import LanguageModel
from saelab.resources import Plan

DOUBLE = 8
"""Bytes of a number in a circuit's linear model."""
LOGITS = 24
"""Bytes per logit while probabilities are computed."""
CIRCUIT_PASSES = 100
"""Duration of a circuit in passes: the linear model, gradients, and judging latents."""
TRACED = 0.03
"""Passes that the inputs of one latent take (measured on SmolLM2-135M, all layers)."""


@torch.no_grad()
def seconds_of_pass(lm: LanguageModel, tokens: Int[Tensor, "batch pos"]) -> float:
    """Seconds of one pass over these tokens, with the logits after the last token."""
    started = 0.0
    for _ in range(2):  # What is done for the first time takes longer.
        started = time.perf_counter()
        float(lm.run(tokens).behind().logits().sum())
    return time.perf_counter() - started


def circuit_plan(lm: LanguageModel, tokens: Int[Tensor, " pos"], n_nodes: int, inputs: int) -> Plan:
    """The plan of a circuit: attention weights, nodes' inputs, and passes with gradients.

    Args:
        lm: the model.
        tokens: the prompt.
        n_nodes: latents whose inputs are computed.
        inputs: bytes that these take.
    """
    info = lm.info
    attention = DOUBLE * info.n_layers * 4 * info.d_model * info.n_heads * info.d_head
    return Plan(
        "circuit",
        lm.device,
        attention + inputs + backward_bytes(lm, 1, len(tokens)) + logits_bytes(lm),
        "shorten the prompt, or lower --max-nodes",
        (CIRCUIT_PASSES + TRACED * n_nodes) * seconds_of_pass(lm, tokens[None]),
    )


def steering_plan(
    lm: LanguageModel, tokens: Int[Tensor, "batch pos"], passes: float | int, length: int
) -> Plan:
    """The plan of this many passes over these tokens, each of which may grow to `length`."""
    logits = min(logits_bytes(lm), LOGITS * len(tokens) * length * lm.info.d_vocab)
    return Plan(
        "steer",
        lm.device,
        forward_bytes(lm, len(tokens), length) + logits,
        "take fewer samples, or a shorter prompt",
        passes * seconds_of_pass(lm, tokens),
    )

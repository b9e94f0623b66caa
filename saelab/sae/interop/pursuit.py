"""SAELens' `matching_pursuit` (arXiv 2506.03093): its settings, and which of them saelab has.

The file holds W_dec and b_dec alone, since the atoms encode too. SAELens can also stop a row where
a step chooses a latent again, or when a step leaves less than a threshold; saelab does neither
(its own threshold is compared before a step), so such files are refused.
"""

from dataclasses import replace

import torch

from saelab.config import UsageError
from saelab.sae.interop.contents import NamedTensors, Record

PURSUIT = "matching_pursuit"
STORED = {"W_dec", "b_dec"}


def steps_of(cfg: Record, d_in: int) -> int:
    """The number of steps that every row takes.

    Raises:
        UsageError: rows may stop earlier, by a rule that saelab does not have.
    """
    # The defaults are those of SAELens 6.54.
    if cfg.flag("stop_on_duplicate_support", default=True):
        raise UsageError(
            f"{cfg.path}: stop_on_duplicate_support stops a row where a step chooses a latent "
            "again, which matching-pursuit SAEs do not do here; set it to false if you can."
        )
    threshold = cfg.number("residual_threshold")
    threshold = 0.01 if threshold is None else threshold
    if threshold > 0:
        raise UsageError(
            f"{cfg.path}: residual_threshold={threshold:g} is compared after each step, and here "
            "it would be before, so some rows would have other codes; set it to 0 if you can."
        )
    steps = cfg.integer("max_iterations")
    return d_in if steps is None else steps


def with_encoder(cfg: Record, weights: NamedTensors) -> NamedTensors:
    """The file's tensors and those that follow from them, under the names of other SAEs."""
    W_dec, b_dec = weights.matrix("W_dec"), weights.vector("b_dec")
    # SAELens adds b_dec only where it subtracts it.
    b_dec = b_dec if cfg.flag("apply_b_dec_to_input", default=True) else torch.zeros_like(b_dec)
    named = {"W_enc": W_dec.T.contiguous(), "b_enc": W_dec.new_zeros(len(W_dec))}
    return replace(weights, tensors={"W_dec": W_dec, "b_dec": b_dec, **named})


def refuse_a_scale(cfg: Record, *, scaled: bool) -> None:
    """Refuse inputs that are scaled first: the atoms encode, and would change too.

    Raises:
        UsageError: they are.
    """
    if scaled:
        raise UsageError(
            f"{cfg.path}: its rows are scaled by a constant first, which cannot be folded into an "
            "encoder whose weights are the atoms."
        )

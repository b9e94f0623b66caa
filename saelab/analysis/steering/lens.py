"""The logit lens: the tokens that a direction at a site raises along the direct path."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.lm.predictions import rows_at_once
from saelab.lm.protocol import Edit, LanguageModel


@torch.no_grad()
def logit_lens(
    lm: LanguageModel, hook: str, directions: Float[Tensor, "n d_in"]
) -> Float[Tensor, "n d_vocab"]:
    """LN_final(w) @ W_U + b_U; w is what each direction writes (arXiv 2505.20063, Eq. 4).

    These are the logits of a residual stream that holds only w: the final norm divides by w's own
    scale, and has its gain and bias. (`LanguageModel.logit_effects` gives differences of logits:
    scale 1, no biases.) A direction in the heads' or the MLP's values first passes W_O or W_out,
    and any norm or multiplier after them.

    Raises:
        UsageError: the site does not write to the residual stream.
    """
    last = f"blocks.{lm.info.n_layers - 1}.hook_resid_post"
    parts = []
    for rows in directions.to(lm.device).split(rows_at_once(lm.info.d_vocab, lm.device)):
        token = torch.zeros(len(rows), 1, dtype=torch.long, device=lm.device)
        edits = {last: _write(_residual(lm, hook, rows))}
        parts.append(lm.run(token, edits=edits).behind().logits().float())
    return torch.cat(parts)


def lens_tokens(
    lm: LanguageModel, hook: str, directions: Float[Tensor, "n d_in"], k: int
) -> Int[Tensor, "n k"]:
    """The `k` tokens that each direction promises most, best first; raises as `logit_lens` does."""
    k = min(k, lm.info.d_vocab)
    parts = directions.split(rows_at_once(lm.info.d_vocab, lm.device))
    return torch.cat([logit_lens(lm, hook, rows).topk(k, dim=1).indices for rows in parts])


@torch.no_grad()
def _residual(
    lm: LanguageModel, hook: str, rows: Float[Tensor, "n d_in"]
) -> Float[Tensor, "n d_model"]:
    """The vector that each direction at the site writes to the residual stream."""
    written = lm.residual_writes(hook, rows)
    if written is None:
        raise UsageError(
            f"{lm.why_no_logits(hook)} Scores and default targets need a residual, attention, MLP "
            "or hook_z site."
        )
    return written


def _write(rows: Float[Tensor, "n d_in"]) -> Edit:
    return lambda _: rows[:, None]

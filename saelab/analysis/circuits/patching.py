"""Effects of latents by the live model's gradients: a second opinion on a graph's.

Nothing is frozen here: attention, norms and MLPs respond. The effect of a latent at one site is
what the metric changes by when its value goes from the clean prompt's to the patch's, estimated
by the gradient at the clean prompt (attribution patching), or by its mean over points on the way
(integrated gradients; arXiv 2403.19647 takes the left ends of 10 steps, the midpoints here are far
more accurate). One site is changed at a time, with latents and error together.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.analysis.circuits.ablation import Metric
from saelab.analysis.circuits.dictionaries import Dictionary
from saelab.config import UsageError
from saelab.lm.protocol import Edit, LanguageModel


@dataclass(frozen=True)
class LatentEffects:
    """What the patch does through each latent of one site, in the metric's units.

    Attributes:
        latents: by position.
        error: what it does through what the latents leave, a skip connection's part included.
        total: metric with the whole site patched, minus that of the clean prompt.
    """

    latents: Float[Tensor, "pos d_sae"]
    error: Float[Tensor, " pos"]
    total: float

    @property
    def accounted(self) -> float:
        """The sum of all effects; goes to `total` with the number of steps."""
        return float(self.latents.sum() + self.error.sum())


@dataclass(frozen=True)
class _State:
    """A site's activations as latents and error: codes @ W_dec + b_dec + error."""

    codes: Float[Tensor, "*point pos d_sae"]
    error: Float[Tensor, "*point pos d_out"]


def latent_effects(
    lm: LanguageModel,
    dictionary: Dictionary,
    clean: Int[Tensor, " pos"],
    metric: Metric,
    *,
    patch: Int[Tensor, " patch_pos"] | None = None,
    n_steps: int | Literal["attribution patching"] = 10,
) -> LatentEffects:
    """The effect of every latent of a site, at every position.

    Args:
        lm: the model.
        dictionary: the SAE of the site.
        clean: the prompt.
        metric: of the logits of one context, differentiable.
        patch: another prompt of the same length; without one, latents go to zero and the error
            stays.
        n_steps: of integrated gradients; memory grows with it.

    Raises:
        UsageError: the prompts differ in length.
    """
    if patch is not None and patch.shape != clean.shape:
        raise UsageError(
            f"The clean prompt has {len(clean)} tokens and the patch {len(patch)}; give prompts of "
            "one length."
        )
    start = _state(lm, dictionary, clean)
    zero = _State(torch.zeros_like(start.codes), start.error)
    end = zero if patch is None else _state(lm, dictionary, patch)
    alphas = [0.0] if isinstance(n_steps, str) else [(k + 0.5) / n_steps for k in range(n_steps)]
    alpha = start.codes.new_tensor(alphas)[:, None, None]
    points = _State(
        torch.lerp(start.codes, end.codes, alpha), torch.lerp(start.error, end.error, alpha)
    )
    codes, error = _mean_gradients(lm, dictionary, clean, metric, points)
    before, after = (_metric_at(lm, dictionary, clean, metric, state) for state in (start, end))
    return LatentEffects(
        (end.codes - start.codes) * codes,
        ((end.error - start.error) * error).sum(-1),
        after - before,
    )


@torch.no_grad()
def _state(lm: LanguageModel, dictionary: Dictionary, tokens: Int[Tensor, " pos"]) -> _State:
    sae = dictionary.sae
    seen = lm.capture(tokens[None], list({dictionary.site, dictionary.target_site}))
    codes = sae.encode(seen[dictionary.site][0].to(sae.W_dec.dtype))
    target = seen[dictionary.target_site][0].to(sae.W_dec.dtype)
    dense = codes.dense()
    return _State(dense, target - (dense @ sae.W_dec + sae.b_dec))


def _mean_gradients(
    lm: LanguageModel,
    dictionary: Dictionary,
    tokens: Int[Tensor, " pos"],
    metric: Metric,
    points: _State,
) -> tuple[Float[Tensor, "pos d_sae"], Float[Tensor, "pos d_out"]]:
    """The metric's gradients, averaged over the points; one pass with a context for each."""
    with torch.enable_grad():
        codes = points.codes.clone().requires_grad_()
        error = points.error.clone().requires_grad_()
        edits = {dictionary.target_site: _splice(dictionary, codes, error)}
        logits = lm.run(tokens.repeat(len(codes), 1), edits=edits).logits
        value = torch.stack([metric(one[None]) for one in logits]).mean()
        first, second = torch.autograd.grad(value, [codes, error])
    return first.sum(0), second.sum(0)


@torch.no_grad()
def _metric_at(
    lm: LanguageModel,
    dictionary: Dictionary,
    tokens: Int[Tensor, " pos"],
    metric: Metric,
    state: _State,
) -> float:
    edits = {dictionary.target_site: _splice(dictionary, state.codes[None], state.error[None])}
    return float(metric(lm.logits(tokens[None], edits)))


def _splice(
    dictionary: Dictionary,
    codes: Float[Tensor, "batch pos d_sae"],
    error: Float[Tensor, "batch pos d_out"],
) -> Edit:
    sae = dictionary.sae

    def edit(value: Float[Tensor, "batch pos d_out"]) -> Float[Tensor, "batch pos d_out"]:
        return (codes @ sae.W_dec + sae.b_dec + error).to(value.dtype)

    return edit

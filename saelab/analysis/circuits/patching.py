"""Effects of latents by the live model's gradients: a second opinion on a graph's.

Nothing is frozen here: attention, norms and MLPs respond. The effect of a latent at one site is
what the metric changes by when its value goes from the clean prompt's to the patch's, estimated
by the gradient at the clean prompt (attribution patching), or by its mean over points on the way
(integrated gradients). arXiv 2403.19647 takes the left ends of 10 steps; here the points are those
of Gauss and Legendre, and as many as it takes for the effects to sum to what the metric changes by
(completeness). One site is changed at a time, with latents and error together; a layer of a
cross-layer transcoder is one site, with all that its latents write.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.analysis.circuits.ablation import Metric
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.host.layers import FurtherWrite
from saelab.lm.protocol import Edit, LanguageModel
from saelab.sae.decoder import atoms_of, dtype_of

FEWEST_STEPS, MOST_STEPS = 8, 128
TOLERANCE = 0.01
"""Largest gap of integrated gradients, as a share of the total."""
POINTS_AT_ONCE = 8
"""Contexts in one pass."""


@dataclass(frozen=True)
class LatentEffects:
    """What the patch does through each latent of one site, in the metric's units.

    Attributes:
        latents: by position.
        error: what it does through what the latents leave, a skip connection's part included.
        total: metric with the whole site patched, minus that of the clean prompt.
        n_steps: points at which gradients were taken.
    """

    latents: Float[Tensor, "pos d_sae"]
    error: Float[Tensor, " pos"]
    total: float
    n_steps: int

    @property
    def accounted(self) -> float:
        """The sum of all effects; goes to `total` with the number of steps."""
        return float(self.latents.sum() + self.error.sum())

    @property
    def gap(self) -> float:
        """How far the effects are from summing to `total`, as a share of it (completeness)."""
        missed = abs(self.accounted - self.total)
        return missed / abs(self.total) if self.total else float(missed > 0)


@dataclass(frozen=True)
class _State:
    """A site's activations as latents and what they leave: codes @ W_dec + error."""

    codes: Float[Tensor, "*point pos d_sae"]
    error: Float[Tensor, "*point pos d_out"]


def latent_effects(
    lm: LanguageModel,
    host: Host,
    clean: Int[Tensor, " pos"],
    metric: Metric,
    *,
    patch: Int[Tensor, " patch_pos"] | None = None,
    n_steps: int | Literal["attribution patching"] | None = None,
) -> LatentEffects:
    """The effect of every latent of a site, at every position.

    Args:
        lm: the model.
        host: the SAE of the site.
        clean: the prompt.
        metric: of the logits of one context, differentiable.
        patch: another prompt of the same length; without one, latents go to zero and the error
            stays.
        n_steps: of integrated gradients; None: 8, and twice as many until the gap is at most
            TOLERANCE, 128 at most. The result says how many, and what gap is left.

    Raises:
        UsageError: the prompts differ in length.
    """
    if patch is not None and patch.shape != clean.shape:
        raise UsageError(
            f"The clean prompt has {len(clean)} tokens and the patch {len(patch)}; give prompts of "
            "one length."
        )
    start = _state(lm, host, clean)
    zero = _State(torch.zeros_like(start.codes), start.error)
    end = zero if patch is None else _state(lm, host, patch)
    before, after = (_metric_at(lm, host, clean, metric, (state, start)) for state in (start, end))
    steps = FEWEST_STEPS if n_steps is None else n_steps
    while True:
        codes, error = _mean_gradients(lm, host, clean, metric, (start, end, steps))
        found = LatentEffects(
            (end.codes - start.codes) * codes,
            ((end.error - start.error) * error).sum(-1),
            after - before,
            1 if isinstance(steps, str) else steps,
        )
        enough = n_steps is not None or found.gap <= TOLERANCE or found.n_steps >= MOST_STEPS
        if enough:
            return found
        steps = 2 * found.n_steps


def _points(n_steps: int | str) -> tuple[list[float], list[float]]:
    """Places between 0 and 1, and weights that sum to 1."""
    if isinstance(n_steps, str):
        return [0.0], [1.0]
    place, weight = np.polynomial.legendre.leggauss(n_steps)
    return ((place + 1) / 2).tolist(), (weight / 2).tolist()


@torch.no_grad()
def _state(lm: LanguageModel, host: Host, tokens: Int[Tensor, " pos"]) -> _State:
    sae = host.sae
    seen = lm.capture(tokens[None], host.sites)
    x, target = seen[host.reads], seen[host.writes]
    dense = host.encode(tokens[None], x, target)[0].dense()
    target = target[0].to(dtype_of(sae))
    return _State(dense, target - dense @ atoms_of(sae))


def _mean_gradients(
    lm: LanguageModel,
    host: Host,
    tokens: Int[Tensor, " pos"],
    metric: Metric,
    way: tuple[_State, _State, int | str],
) -> tuple[Float[Tensor, "pos d_sae"], Float[Tensor, "pos d_out"]]:
    """The metric's gradients, averaged over points on the way; a context for each."""
    start, end, n_steps = way
    places, weights = (start.codes.new_tensor(part) for part in _points(n_steps))
    sums = [torch.zeros_like(start.codes), torch.zeros_like(start.error)]
    for place, weight in zip(
        places.split(POINTS_AT_ONCE), weights.split(POINTS_AT_ONCE), strict=True
    ):
        with torch.enable_grad():
            points = [
                torch.lerp(a, b, place[:, None, None]).requires_grad_()
                for a, b in ((start.codes, end.codes), (start.error, end.error))
            ]
            edits = _splices(host, points[0], points[1], start.codes)
            logits = lm.run(tokens.repeat(len(place), 1), edits=edits).logits
            value = torch.stack([metric(one[None]) for one in logits])
            found = torch.autograd.grad(value @ weight.to(value.dtype), points)
        sums = [total + part.sum(0) for total, part in zip(sums, found, strict=True)]
    return sums[0], sums[1]


@torch.no_grad()
def _metric_at(
    lm: LanguageModel,
    host: Host,
    tokens: Int[Tensor, " pos"],
    metric: Metric,
    states: tuple[_State, _State],
) -> float:
    state, start = states
    edits = _splices(host, state.codes[None], state.error[None], start.codes)
    return float(metric(lm.logits(tokens[None], edits)))


def _splices(
    host: Host,
    codes: Float[Tensor, "batch pos d_sae"],
    error: Float[Tensor, "batch pos d_out"],
    before: Float[Tensor, "pos d_sae"],
) -> dict[str, Edit]:
    """The site as latents and error, and their changes where they write to later layers."""
    sae = host.sae

    def own(value: Float[Tensor, "batch pos d_out"]) -> Float[Tensor, "batch pos d_out"]:
        return (codes @ sae.W_dec.to(codes.dtype) + error).to(value.dtype)

    def later(
        write: FurtherWrite, value: Float[Tensor, "batch pos d_out"]
    ) -> Float[Tensor, "batch pos d_out"]:
        change = (codes - before) @ write.W_dec.to(codes.dtype) * write.factor
        return value + (change * write.lands(value)[..., None]).to(value.dtype)

    return {host.writes: own, **{w.site: partial(later, w) for w in host.further}}

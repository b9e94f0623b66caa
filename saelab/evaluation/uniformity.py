"""Uniformity: whether a token's active latents are equally important for the next token."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.evaluation.downstream import counted_positions
from saelab.evaluation.inputs import (
    Inputs,
    codes_from_x,
    decoder,
    language_model,
    replaceable_site,
)
from saelab.evaluation.measurement import Line, Measurement
from saelab.evaluation.rows import Skipped
from saelab.host.text import Text
from saelab.lm.cost import contexts_at_once
from saelab.lm.gradients import tracked
from saelab.lm.protocol import LanguageModel
from saelab.sae.base import AbstractSAE
from saelab.types import SparseCodes

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Uniformity:
    """Uniformity of active-latent importance (arXiv 2408.05147, appendix C.3, Eqs. 12-14).

    At a token, y_i = f_i (W_dec[i] . g). g is the gradient, by the token's activation, of the
    correct next token's logit minus the mean logit. With p = |y| / sum |y| and its entropy S in
    nats, r = e^S / ||y||_0 is in [1 / ||y||_0, 1]; it is 1 if all active latents are equally
    important. Signed codes need no special case: flipping a latent's sign does not change y.

    Attributes:
        n_tokens: tokens counted, one per context, drawn at random.
        n_without: tokens drawn where no active latent has an effect; not counted.
        r: mean of r over tokens.
        effective: mean of e^S, the effective number of latents that matter.
        l0: mean of ||y||_0.
        r_quantiles: quantiles of r over tokens, at 5 %, 25 %, 50 %, 75 % and 95 %.
    """

    n_tokens: int
    n_without: int
    r: float
    effective: float
    l0: float
    r_quantiles: list[float]


class UniformityTokens:
    """Draws one token per context and keeps its latents' contributions.

    Each context costs its part of one forward and one backward pass. `hook` is the site that the
    SAE writes; a transcoder reads at `source`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        sae: AbstractSAE,
        hook: str,
        *,
        seed: int,
        source: str | None = None,
    ) -> None:
        self.lm, self.sae, self.hook = lm, sae, hook
        self.source = source or hook
        self.draw = torch.Generator().manual_seed(seed)
        self.n_tokens = 0
        self.effective: list[Tensor] = []
        self.l0: list[Tensor] = []

    def update(self, text: Text, *, n_tokens: int) -> None:
        """Add a token of each context with two consecutive real tokens, up to `n_tokens`."""
        possible = counted_positions(text.mask).cpu()
        usable = possible.any(dim=1).nonzero()[: n_tokens - self.n_tokens, 0]
        if not len(usable):
            return
        position = torch.multinomial(possible[usable].float(), 1, generator=self.draw)[:, 0]
        tokens = text.tokens[usable.to(text.tokens.device)]
        # The backward pass keeps every layer's activations, so fewer contexts fit in memory.
        at_once = contexts_at_once(self.lm, tokens.shape[1], backward=True)
        for some, place in zip(tokens.split(at_once), position.split(at_once), strict=True):
            x, gradient = centred_logit_gradients(
                self.lm, self.hook, some, place.to(some.device), self.source
            )
            with torch.no_grad():
                effects = contributions(self.sae.encode(x), self.sae.W_dec, gradient)
                effective, l0 = effective_number(effects)
            self.effective.append(effective.cpu())
            self.l0.append(l0.cpu())
        self.n_tokens += len(usable)

    def results(self) -> Uniformity | Skipped:
        """The results of all tokens added."""
        effective = torch.cat(self.effective) if self.effective else torch.zeros(0)
        l0 = torch.cat(self.l0) if self.l0 else torch.zeros(0)
        counted = l0 > 0
        if not bool(counted.any()):
            return Skipped("At none of the tokens that were drawn has an active latent an effect.")
        effective, l0 = effective[counted], l0[counted]
        r = effective / l0
        return Uniformity(
            n_tokens=len(r),
            n_without=int((~counted).sum()),
            r=float(r.mean()),
            effective=float(effective.mean()),
            l0=float(l0.mean()),
            r_quantiles=r.quantile(torch.tensor(QUANTILES, dtype=r.dtype)).tolist(),
        )


def centred_logit_gradients(
    lm: LanguageModel,
    hook: str,
    tokens: Int[Tensor, "context pos"],
    position: Int[Tensor, " context"],
    source: str | None = None,
) -> tuple[Float[Tensor, "context d_in"], Float[Tensor, "context d_out"]]:
    """The activations at `source` at one position of each context, and the gradient g at `hook`.

    g is the gradient of the next token's logit minus the mean logit. Without a `source` both are at
    `hook`.
    """
    source = source or hook
    site: list[Tensor] = []

    def watch(value: Float[Tensor, "context pos d_in"]) -> Float[Tensor, "context pos d_in"]:
        site.append(tracked(value))
        return site[0]

    context = torch.arange(len(tokens), device=tokens.device)
    with torch.enable_grad():
        found = lm.run(tokens, edits={hook: watch}, hooks=[source])
        here = torch.zeros_like(tokens, dtype=torch.bool)
        here[context, position] = True
        target = tokens[context, position + 1]

        def centred(logits: Float[Tensor, "n d_vocab"], part: slice) -> Float[Tensor, ""]:
            asked = logits.gather(1, target[part, None])[:, 0]
            return (asked - logits.mean(dim=1)).sum()

        # Contexts do not interact, so one backward pass of the sum gives all gradients.
        (gradient,) = torch.autograd.grad(found.at(here).total(centred), site)
    x = found.activations[source].detach()
    return x[context, position].float(), gradient[context, position].float()


def contributions(
    codes: SparseCodes, W_dec: Float[Tensor, "d_sae d_out"], gradient: Float[Tensor, "row d_out"]
) -> Float[Tensor, "row width"]:
    """Every selected latent's y: its value times its decoder row's product with the gradient."""
    codes = codes.rectangular()
    along = torch.einsum("rkd,rd->rk", W_dec.detach()[codes.indices].float(), gradient)
    return codes.values.float() * along


def effective_number(
    effects: Float[Tensor, "row width"],
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """e^S of each row's |y| / sum |y|, and ||y||_0; both 0 if all effects are 0."""
    magnitude = effects.abs().double()
    total = magnitude.sum(dim=1, keepdim=True)
    p = magnitude / total.clamp_min(torch.finfo(torch.float64).tiny)
    entropy = -torch.xlogy(p, p).sum(dim=1)
    l0 = (magnitude > 0).sum(dim=1).double()
    return torch.where(l0 > 0, entropy.exp(), 0.0), l0


def _lines(u: Uniformity) -> Iterator[Line]:
    meaning = f"effective share of active latents that matter, {u.n_tokens} tokens"
    yield "uniformity", f"{u.r:.3f}", f"{meaning}; 1 is all alike"
    yield "that matter", f"{u.effective:.2f}", f"effective number of latents, of {u.l0:.2f}"


def _measure(inputs: Inputs) -> Uniformity | Skipped:
    source, options = inputs.run.config.site, inputs.options
    tokens = UniformityTokens(inputs.lm, inputs.sae, inputs.site, seed=options.seed, source=source)
    for text in inputs.texts():
        tokens.update(text, n_tokens=options.n_uniformity)
        if tokens.n_tokens >= options.n_uniformity:
            break
    return tokens.results()


UNIFORMITY = Measurement(
    "uniformity",
    "What do the latents do to the predictions?",
    _lines,
    measure=_measure,
    result=Uniformity,
    needs=(language_model, replaceable_site, decoder, codes_from_x),
)

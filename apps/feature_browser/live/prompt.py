"""An SAE's reading of a prompt: the latents on each token, and their effect on a logit.

torch is imported where it is used, so that a page can draw a reading without it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from feature_browser.live.model import lock_of
from saelab.lm.prompt import prompt_tokens, token_id

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.host.host import Host

N_PREDICTED = 8
CELLS_AT_ONCE = 2**24
"""Numbers of decoder rows gathered at a time: 64 MiB."""


@dataclass(frozen=True)
class Prediction:
    """A possible next token and its probability."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class PromptReading:
    """A prompt as the model and the SAE read it; entries are the latents' firings, by position.

    Attributes:
        tokens: the tokens' names, <bos> first if the model has one.
        pieces: the text, token by token (`TokenTable.pieces`), with `gap` between.
        unread: for each token, why the SAE is not applied to it; empty if it is.
        log_prob: log-probability of each token given those before it, in nats; NaN for the first.
        position, latent, value: of each firing.
        attribution: first-order effect of each firing on the target's logit after the prompt, minus
            the mean logit: value * W_dec[latent] . dlogit/dx (arXiv 2403.19647, Eq. 2); NaN if the
            site has no gradient.
        predicted: the most likely next tokens.
        target: the token that the attributions explain.
    """

    tokens: tuple[str, ...]
    pieces: tuple[str, ...]
    gap: str
    unread: tuple[str, ...]
    log_prob: Float[ndarray, " pos"]
    position: Int[ndarray, " firing"]
    latent: Int[ndarray, " firing"]
    value: Float[ndarray, " firing"]
    attribution: Float[ndarray, " firing"]
    predicted: tuple[Prediction, ...]
    target: Prediction

    @property
    def has_effects(self) -> bool:
        """Whether effects on a logit are known; of an SAE of several sites they are not."""
        return not np.isnan(self.attribution).all()


def read_prompt(live: "Host", text: str, target: str = "") -> PromptReading:
    """The run's latents on `text`, and their effects on `target`'s logit (default: the top one).

    Raises:
        UsageError: the text is empty, too long, or has tokens that the model does not know; or the
            target is not one token.
    """
    import torch

    with lock_of(live.lm), torch.enable_grad():
        ids = prompt_tokens(live.lm, text)
        seen: list[Tensor] = []

        def track(x: "Tensor") -> "Tensor":
            seen.append(x.detach().clone().requires_grad_())
            return seen[-1]

        tokens = torch.tensor([ids], device=live.lm.device)
        edits = {live.writes: track} if live.replaceable else {}
        out = live.lm.run(tokens, edits=edits, hooks=live.sites)
        logits = out.logits[0].float()
        wanted = token_id(live.lm, target) if target else int(logits[-1].argmax())
        gradient = None
        if seen:
            logit = logits[-1, wanted] - logits[-1].mean()
            gradient = torch.autograd.grad(logit, seen)[0][0]
        sites = (live.reads, live.writes)
        found = [out.activations[site][0].detach() for site in sites]
        return _reading(live, ids, found, logits, (gradient, wanted))


def _reading(
    live: "Host",
    ids: list[int],
    found: "list[Tensor]",
    logits: "Tensor",
    about: "tuple[Tensor | None, int]",
) -> PromptReading:
    import torch

    gradient, wanted = about
    table = live.lm.tokenizer.table
    with torch.no_grad():
        tokens = torch.tensor(ids, device=found[0].device)
        unread = _unread(live, tokens, *found)
        codes, _ = live.encode(tokens[None], *(part[None] for part in found))
        active = codes.active
        position, latent = codes.rows()[active], codes.indices[active]
        value = codes.values[active].float()
        attribution = value * _pull(live, gradient, position, latent)
        log_probs = logits.log_softmax(-1)
        following = log_probs[:-1].gather(1, tokens[1:, None])
        best = log_probs[-1].topk(min(N_PREDICTED, logits.shape[1])).indices.tolist()

    def prediction(token: int) -> Prediction:
        return Prediction(token, table.name(token), float(log_probs[-1, token].exp()))

    return PromptReading(
        tokens=tuple(map(table.name, ids)),
        pieces=tuple(table.pieces(ids)),
        gap=table.gap,
        unread=unread,
        log_prob=np.concatenate([[np.nan], following[:, 0].cpu().double().numpy()]),
        position=position.cpu().numpy(),
        latent=latent.cpu().numpy(),
        value=value.cpu().double().numpy(),
        attribution=attribution.cpu().double().numpy(),
        predicted=tuple(prediction(token) for token in best),
        target=prediction(wanted),
    )


def _unread(live: "Host", ids: "Tensor", x: "Tensor", target: "Tensor") -> tuple[str, ...]:
    domain = live.domain
    limits = (domain.max_norm, domain.max_target_norm)
    sizes = [part.float().norm(dim=-1).tolist() for part in (x, target)]
    reasons = []
    for token, placed, *norms in zip(
        ids.tolist(), domain.places(ids).tolist(), *sizes, strict=True
    ):
        reason = ""
        if token in domain.special_token_ids:
            reason = "a special token: this SAE is not trained on it"
        elif not placed:
            reason = "a first position: this SAE is not trained on it"
        for norm, limit in zip(norms, limits, strict=True):
            if not reason and limit is not None and norm > limit:
                reason = (
                    f"a massive activation, of norm {norm:,.0f}: this SAE is trained up to "
                    f"{limit:,.0f}"
                )
        reasons.append(reason)
    return tuple(reasons)


def _pull(
    live: "Host", gradient: "Tensor | None", position: "Tensor", latent: "Tensor"
) -> "Tensor":
    """W_dec[latent] . gradient[position] of each firing, some rows at a time; NaN without W_dec."""
    import torch

    if gradient is None or live.sae.config.decoder_problem is not None:
        return torch.full(latent.shape, torch.nan, device=latent.device)
    rows = max(1, CELLS_AT_ONCE // gradient.shape[1])
    parts = [
        (live.sae.W_dec[f].float() * gradient[p].float()).sum(1)
        for p, f in zip(position.split(rows), latent.split(rows), strict=True)
    ]
    return torch.cat(parts) if parts else gradient.new_zeros(0)

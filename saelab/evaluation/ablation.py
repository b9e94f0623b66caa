"""Ablation sparsity: whether ablating one latent changes few predictions or all of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.evaluation.inputs import Inputs, decoder, language_model, replaceable_site
from saelab.evaluation.measurement import Line, Measurement
from saelab.evaluation.rows import Skipped
from saelab.host.text import TextBatch
from saelab.lm.protocol import Edit, LanguageModel
from saelab.sae.base import AbstractSAE
from saelab.sae.decoder import atoms_of

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Ablations:
    """Results of one kind of ablation, over all draws.

    Attributes:
        n: ablations counted.
        n_without: ablations that changed no logit; they have no sparsity.
        mean: mean of the sparsity.
        quantiles: its quantiles at 5 %, 25 %, 50 %, 75 % and 95 %.
        effect: mean over ablations of ||delta||_2, in logits.
    """

    n: int
    n_without: int
    mean: float
    quantiles: list[float]
    effect: float


@dataclass(frozen=True)
class AblationSparsity:
    """Sparsity of a latent's downstream effect (arXiv 2406.04093, section 4).

    At a drawn token, f_i W_dec[i] is subtracted from the SAE's output (its error stays). The logits
    of `reach` positions, from the token's own on, change by delta; from delta each position's
    median is subtracted. Sparsity = (||delta||_1 / ||delta||_2)^2 / size(delta), in (0, 1]: 1 /
    size if one logit changes, 1 if all change equally, 2 / pi for a random Gaussian delta. Lower is
    sparser.

    Attributes:
        n_tokens: tokens drawn, one per context.
        reach: positions compared.
        latents: ablations of active latents drawn at these tokens.
        channels: the baseline: single coordinates of the site set to b_dec's, at the same tokens;
            None if none of them changed a logit.
    """

    n_tokens: int
    reach: int
    latents: Ablations
    channels: Ablations | None


class AblationTokens:
    """Draws one token per context, latents active there, and the same number of channels.

    A token costs one forward pass of 1 + 2 n_latents sequences that end with its reach. `hook` is
    the site that the SAE writes.
    """

    def __init__(
        self, lm: LanguageModel, sae: AbstractSAE, hook: str, *, n_latents: int, reach: int
    ) -> None:
        self.lm, self.sae, self.hook = lm, sae, hook
        self.n_latents, self.reach = n_latents, reach
        self.found: dict[str, list[Tensor]] = {"latents": [], "channels": []}
        self.n_tokens = 0

    @torch.no_grad()
    def update(self, batch: TextBatch, *, n_tokens: int, draw: torch.Generator) -> None:
        """Add a token of each context with enough real tokens after it, up to `n_tokens`."""
        possible = self._possible(batch.mask.cpu())
        for context in possible.any(dim=1).nonzero()[:, 0].tolist():
            if self.n_tokens >= n_tokens:
                return
            position = int(torch.multinomial(possible[context].float(), 1, generator=draw))
            row = int(batch.mask[:context].sum()) + int(batch.mask[context, :position].sum())
            changes = self._changes(batch.x[row], batch.wanted[row], draw)
            self._measure(batch.tokens[context], position, changes)
            self.n_tokens += 1

    def _possible(self, mask: Bool[Tensor, "context pos"]) -> Bool[Tensor, "context pos"]:
        """Real tokens whose next `reach` - 1 positions are real too."""
        out = torch.zeros_like(mask)
        n = mask.shape[1] - self.reach + 1
        if n > 0:
            out[:, :n] = mask[:, :n] & mask[:, self.reach - 1 :]
        return out

    def _changes(
        self,
        x: Float[Tensor, " d_in"],
        wanted: Float[Tensor, " d_out"],
        draw: torch.Generator,
    ) -> dict[str, Float[Tensor, "n d_out"]]:
        """What each ablation adds to `wanted`; the codes are those of `x`."""
        codes = self.sae.encode_for(x[None], wanted[None]).rectangular()
        active = codes.active[0].nonzero()[:, 0].cpu()
        chosen = active[torch.randperm(len(active), generator=draw)[: self.n_latents]]
        chosen = chosen.to(codes.indices.device)
        latent, value = codes.indices[0, chosen], codes.values[0, chosen]
        channel = torch.randperm(len(wanted), generator=draw)[: self.n_latents].to(x.device)
        here = torch.arange(len(channel), device=x.device)
        towards = x.new_zeros(len(channel), len(wanted))
        resting = self.sae.resting(x[None]).expand(1, -1)[0]
        towards[here, channel] = (resting - wanted)[channel]
        return {"latents": -value[:, None] * atoms_of(self.sae, latent), "channels": towards}

    def _measure(
        self, tokens: Tensor, position: int, changes: dict[str, Float[Tensor, "n d_out"]]
    ) -> None:
        added = torch.cat([changes["latents"], changes["channels"]])
        ends = position + self.reach
        # The unchanged sequence is in the same batch, so that only the ablation differs.
        sequences = tokens[None, :ends].expand(1 + len(added), ends)
        out = self.lm.run(sequences, edits={self.hook: _add_at(position, added)})
        # Position by position, since a vocabulary is large.
        sums = torch.zeros(len(added), 2, dtype=torch.float64, device=added.device)
        for place in range(position, ends):
            logits = out.behind(place).logits()
            delta = (logits[1:] - logits[:1]).double()
            delta = delta - delta.median(dim=-1, keepdim=True).values
            sums += torch.stack([delta.abs().sum(dim=1), delta.pow(2).sum(dim=1)], dim=1)
        size = self.reach * out.behind().d_vocab
        share = sparsity(sums[:, 0], sums[:, 1], size)
        found = torch.stack([share, sums[:, 1].sqrt()], dim=1).cpu()
        sizes = [len(changes["latents"]), len(changes["channels"])]
        for name, part in zip(self.found, found.split(sizes), strict=True):
            self.found[name].append(part)

    def results(self) -> AblationSparsity | Skipped:
        """The results of all tokens added."""
        found = {name: torch.cat(parts) for name, parts in self.found.items() if parts}
        if not found:
            return Skipped(
                f"No token of the text has {self.reach} real positions from it on; lower --reach."
            )
        latents, channels = (_summary(part) for part in found.values())
        if latents is None:
            return Skipped("No latent was active at the tokens drawn, or none changed a logit.")
        return AblationSparsity(self.n_tokens, self.reach, latents, channels)


def sparsity(
    magnitude: Float[Tensor, " n"], squares: Float[Tensor, " n"], size: int
) -> Float[Tensor, " n"]:
    """(||delta||_1 / ||delta||_2)^2 / size, from sums of |delta| and delta^2; 0 for delta = 0."""
    return magnitude.pow(2) / squares.clamp_min(torch.finfo(squares.dtype).tiny) / size


def _add_at(position: int, added: Float[Tensor, "n d_in"]) -> Edit:
    def edit(value: Float[Tensor, "sequence pos d_in"]) -> Float[Tensor, "sequence pos d_in"]:
        edited = value.clone()
        edited[1:, position] += added.to(value.dtype)
        return edited

    return edit


def _summary(found: Float[Tensor, "n 2"]) -> Ablations | None:
    counted = found[:, 1] > 0
    if not bool(counted.any()):
        return None
    values = found[counted, 0]
    quantiles = values.quantile(torch.tensor(QUANTILES, dtype=values.dtype))
    return Ablations(
        n=len(values),
        n_without=int((~counted).sum()),
        mean=float(values.mean()),
        quantiles=quantiles.tolist(),
        effect=float(found[counted, 1].mean()),
    )


def _lines(a: AblationSparsity) -> Iterator[Line]:
    kinds = [("latents", a.latents)] + ([("channels", a.channels)] if a.channels else [])
    for name, found in kinds:
        meaning = f"share of the next {a.reach} tokens' logits that ablating one changes"
        what = f"ablation, {name}"
        yield what, f"{found.mean:.3f}", f"{meaning}; {found.n} ablated, lower is sparser"


def _measure(inputs: Inputs) -> AblationSparsity | Skipped:
    options = inputs.options
    n_latents, reach = options.n_ablated_latents, options.reach
    tokens = AblationTokens(inputs.lm, inputs.sae, inputs.site, n_latents=n_latents, reach=reach)
    draw = torch.Generator().manual_seed(options.seed)
    for batch in inputs.batches():
        tokens.update(batch, n_tokens=options.n_ablated_tokens, draw=draw)
        if tokens.n_tokens >= options.n_ablated_tokens:
            break
    return tokens.results()


ABLATION = Measurement(
    "ablation",
    "What do the latents do to the predictions?",
    _lines,
    measure=_measure,
    result=AblationSparsity,
    needs=(language_model, replaceable_site, decoder),
)

"""What training minimises: the error of the reconstruction, seen or hidden, or its effect."""

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from saelab.config import UsageError
from saelab.lm.edits import replace_rows
from saelab.lm.predictions import Predictions, exact
from saelab.lm.protocol import LanguageModel
from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.sae.losses import local_loss, total_loss
from saelab.shard import ALONE, Replicas, replicas_of
from saelab.sites import Site
from saelab.training.config import TrainConfig
from saelab.training.domain import Domain
from saelab.training.source import Batch, Source
from saelab.types import ActivationBatch, LossTerms


@runtime_checkable
class Objective(Protocol):
    """A loss for any SAE on batches of one stream."""

    def loss(
        self, sae: AbstractSAE, batch: Batch, context: LossContext, scale: float
    ) -> tuple[Float[Tensor, "batch d_in"], LossTerms]:
        """The rows that the SAE reconstructs, and the loss on a batch.

        The SAE reads the activations times `scale`; a transcoder's targets are already scaled.
        """
        ...


class Local:
    """The squared error of the reconstruction, divided by the variance."""

    def loss(
        self, sae: AbstractSAE, batch: Batch, context: LossContext, scale: float
    ) -> tuple[Float[Tensor, "batch d_in"], LossTerms]:
        """See `Objective.loss`."""
        assert isinstance(batch, ActivationBatch)
        scaled = batch if scale == 1.0 else replace(batch, x=batch.x * scale)
        return scaled.wanted, local_loss(sae, scaled, context)


@dataclass(frozen=True)
class Masked:
    """The squared error at numbers that the encoder did not see (arXiv 2302.12715, section 3).

    What is hidden is replaced by the encoder's bias, and what remains is scaled up, so that the
    pre-activations are right on average. Noise in what is hidden cannot be known from the rest, so
    latents that model noise do not lower the loss. A variant's further terms (AuxK, penalties) see
    the whole rows.

    Attributes:
        share: of the numbers, how many are hidden; at least one and not all.
        by_row: whether each row hides other numbers.
    """

    share: float
    by_row: bool

    def loss(
        self, sae: AbstractSAE, batch: Batch, context: LossContext, scale: float
    ) -> tuple[Float[Tensor, "batch d_in"], LossTerms]:
        """See `Objective.loss`."""
        assert isinstance(batch, ActivationBatch)
        x = batch.x * scale
        hidden = self.hidden(x, context, replicas_of(sae.shard))
        bias = sae.input_bias.detach()
        seen_share = 1 - hidden.float().mean(dim=-1, keepdim=True)
        seen = torch.where(hidden, bias, bias + (x - bias) / seen_share)
        done = sae.training_pass(replace(batch, x=seen, target=x), context)
        error = torch.where(hidden, x - done.activations, 0.0).pow(2).sum(dim=1) / (1 - seen_share)
        return x, total_loss(error.mean() / context.total_variance, x, done)

    def hidden(
        self, x: Float[Tensor, "batch d_in"], context: LossContext, replicas: Replicas = ALONE
    ) -> Bool[Tensor, "rows d_in"]:
        """Which numbers this step hides: `[1 d_in]`, or by row `[batch d_in]`.

        They are drawn for all replicas' rows, and are those of this one.
        """
        rows, d = (len(x) * replicas.count if self.by_row else 1), x.shape[1]
        n = min(max(1, round(self.share * d)), d - 1)
        drawn = torch.rand(rows, d, generator=context.generator())
        own = replicas.rows(rows) if self.by_row else slice(None)
        return (drawn[own].argsort(dim=1).argsort(dim=1) < n).to(x.device)


@dataclass(frozen=True)
class EndToEnd:
    """KL(plain || spliced), and the error at later layers (arXiv 2405.12241, eqs. 2 and 3).

    The frozen model runs twice per step: plain, and with the reconstruction instead of the
    activations at every real token. Gradients flow through the second run into the SAE only. The
    loss includes the variant's further terms (AuxK, penalties) but not its squared error. In the
    paper, coefficients depend on the layer; here each later layer's error is divided by that
    layer's variance in the batch instead.

    Attributes:
        lm: the language model that the store was harvested from.
        site: the site of the SAE.
        later: the later hooks whose activations are compared; empty for `e2e`.
        domain: activations outside it stay unchanged and do not count in the loss.
    """

    lm: LanguageModel
    site: str
    kl_coefficient: float
    downstream_coefficient: float
    later: tuple[str, ...]
    domain: Domain = field(default_factory=Domain)

    def loss(
        self, sae: AbstractSAE, batch: Batch, context: LossContext, scale: float
    ) -> tuple[Float[Tensor, "batch d_in"], LossTerms]:
        """See `Objective.loss`."""
        assert not isinstance(batch, ActivationBatch)
        tokens, mask = batch.tokens, batch.mask
        with torch.no_grad():
            plain = self.lm.run(tokens, hooks=(self.site, *self.later))
        mask = mask & self.domain.covers(tokens, plain.activations[self.site])
        x = plain.activations[self.site][mask].float() * scale
        done = sae.training_pass(ActivationBatch(x), context)
        edits = {self.site: replace_rows(mask, done.activations / scale)}
        spliced = self.lm.run(tokens, edits=edits, hooks=self.later)
        kl = kl_plain_spliced(plain.at(mask), spliced.at(mask))
        main, reported = self.kl_coefficient * kl, {"kl": kl}
        if self.later:
            errors = [
                relative_error(plain.activations[hook][mask], spliced.activations[hook][mask])
                for hook in self.later
            ]
            reported["downstream"] = torch.stack(errors).mean()
            main = main + self.downstream_coefficient * reported["downstream"]
        return x, total_loss(main, x, done, reported)


def kl_plain_spliced(plain: Predictions, spliced: Predictions) -> Float[Tensor, ""]:
    """KL(plain || spliced) in nats, mean over positions; in float32, a few positions at a time."""

    def kl(logits: Float[Tensor, "n d_vocab"], part: slice) -> Float[Tensor, ""]:
        p, q = exact(plain.logits(part).detach()).log_softmax(-1), logits.log_softmax(-1)
        return F.kl_div(q, p, log_target=True, reduction="sum")

    return spliced.total(kl) / len(spliced)


def relative_error(
    plain: Float[Tensor, "row d_in"], spliced: Float[Tensor, "row d_in"]
) -> Float[Tensor, ""]:
    """||spliced - plain||^2 over ||plain - mean(plain)||^2, both summed over all rows."""
    plain, spliced = plain.detach().float(), spliced.float()
    return (spliced - plain).pow(2).sum() / (plain - plain.mean(0)).pow(2).sum()


def make_objective(source: Source) -> Objective:
    """The objective of a source's configuration; loads the store's model if needed.

    Raises:
        UsageError: the model does not exist, or lacks a site.
    """
    config = source.config
    if config.objective == "local":
        return Local()
    if config.objective == "masked":
        if source.site.d_in < 2:
            raise UsageError(f"{config.site} has one dimension; masked needs two or more.")
        return Masked(config.hidden_share, config.hide == "entries")
    lm = source.model()
    later = _later_sites(config, lm) if config.objective == "e2e-ds" else ()
    for hook in later:
        lm.width(hook)  # Refuses a hook that does not exist before anything is written.
    weights = (config.kl_coefficient, config.downstream_coefficient)
    return EndToEnd(lm, config.site, *weights, later, source.selection.domain)


def _later_sites(config: TrainConfig, lm: LanguageModel) -> tuple[str, ...]:
    """The hooks that e2e-ds compares: the given ones, or the stream after each later block."""
    if config.downstream_sites:
        return config.downstream_sites
    # The output of the SAE's own block is what the SAE replaces, so it is not compared.
    n_layers = lm.info.n_layers
    first = Site.of(config.site).next_layer
    layers = range(n_layers if first is None else first, n_layers)
    later = tuple(f"blocks.{layer}.hook_resid_post" for layer in layers)
    if not later:
        raise UsageError(
            f"No block comes after {config.site} in {lm.info.name}, so --objective e2e-ds has "
            "nothing to compare; use --objective e2e."
        )
    return later

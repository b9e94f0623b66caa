"""The fused training step: an SAE trained by kernels alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.kernels.cuda import MAX_K
from saelab.kernels.exchange import LatentExchange
from saelab.kernels.rules import FusedRule, Ties
from saelab.kernels.torch.zipf import Usage
from saelab.kernels.triton.codes.rows import RowCodes
from saelab.kernels.triton.step.aux_k import AuxRules
from saelab.kernels.triton.step.rules import AdamRules, Launch, Rules
from saelab.kernels.triton.step.step import Step
from saelab.kernels.triton.weights import Parameter, Weights
from saelab.pursuit.matching_pursuit import merged_codes
from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.training.fused_graphs import Graphs, OneGraph, TwoGraphs
from saelab.types import SparseCodes

T = TypeVar("T")
TRANSCODERS = ("b_in", "W_skip")
"""Parameters that only transcoders have; see `Weights`."""


@dataclass(frozen=True)
class FusedOptions:
    """Options of a fused step.

    Attributes:
        batch_size: rows in every batch.
        total_variance: V, which the squared error is divided by.
        precision: dtype of the products and of their stored inputs.
        dead_after: tokens of silence after which AuxK revives a latent.
        clip_norm: largest global gradient norm; None for no limit. A limit costs a second visit to
            every latent, since Adam needs the norm first.
        launch: shapes of the latent-major pass.
        ties: what tells pre-activations apart that are equal in `precision`: their index, or
            their products in float32, see `saelab.kernels.triton.select.ties`.
        adam: options of the optimizer.
    """

    batch_size: int
    total_variance: float
    precision: torch.dtype = torch.bfloat16
    dead_after: int = 10_000_000
    clip_norm: float | None = None
    launch: Launch = Launch()  # noqa: RUF009 - frozen
    ties: Ties = "index"
    adam: AdamRules = AdamRules()  # noqa: RUF009 - frozen


class FusedStep:
    """One optimizer step of an SAE, with AuxK, clipping, Adam, projection and renormalisation.

    The step is that of `AutogradSteps.optimizer_step`. On CUDA the step is one graph or two, see
    `fused_graphs`; the graphs read the learning rate from the device. On the CPU it runs under
    Triton's interpreter, for tests only.

        step = FusedStep(sae, FusedOptions(batch_size=8192, total_variance=V))
        for x in batches:
            step.set_lr(1e-4)
            step(x)
        step.write_back()

    Selection is exact on the stored pre-activations, whose dtype is `precision`; of equal ones the
    lowest index wins. Weights and sums are float32, and moments too unless `adam` says otherwise.
    Two runs are bit-equal on the same kind of device with the same library versions.

    Attributes:
        mse_sum: squared error of the last step, a scalar on the device; see `LossTerms`.
        error: the error in the loss of the last step; for Matryoshka, that of all prefixes.
        gradient_norm: of the last step, before clipping; 0 if there is no limit.
        since_fired: `[d_sae]`, tokens since each latent last fired.
    """

    def __init__(
        self, sae: AbstractSAE, options: FusedOptions, device: torch.device | None = None
    ) -> None:
        """Copy the SAE's weights to `device` (its own by default); see `write_back`.

        Raises:
            UsageError: the SAE's kind or a term of its loss has no kernels, or k is too large.
        """
        self.sae, self.rules = sae, _rules(sae, options)
        device = sae.W_dec.device if device is None else device
        held = {name: value.to(device) for name, value in sae.state_dict().items()}
        self.weights = _weights(held, self.rules.sae, options)
        exchange = LatentExchange(sae.shard)
        step = Step(self.weights, self.rules, options.batch_size, options.launch, exchange)
        self.graphs: Graphs = TwoGraphs(step) if self.rules.sae.jump else OneGraph(step)
        self.n_steps = 0
        self._lr: float | None = None  # Not known: what is loaded may be another.
        self.mse_sum, self.since_fired = step.mse_sum, self.weights.since_fired
        self.gradient_norm, self.error = step.gradient_norm, step.error

    def set_lr(self, lr: float | int) -> None:
        """Set the learning rate of the following steps."""
        if lr != self._lr:
            self.weights.lr.fill_(lr)
            self._lr = lr

    def prepare(self, context: LossContext) -> None:
        """Set what the next step needs beside the batch."""
        self.graphs.tell(self.sae.step_values(context))

    @torch.no_grad()
    def __call__(
        self,
        x: Float[Tensor, "batch d_in"],
        scale: float = 1.0,
        grad: Float[Tensor, "batch d_out"] | None = None,
        target: Float[Tensor, "batch d_out"] | None = None,
        after: Callable[[], T] | None = None,
    ) -> T | None:
        """Do one step on `scale * x`, rounded to `precision`; what `after` returned.

        Args:
            x: `batch_size` rows.
            scale: factor of the rows.
            grad: dL/dx at the rows, for a gradient SAE; not scaled.
            target: the rows that a transcoder reconstructs; not scaled.
            after: called at the end of the step. A graph of the step holds what it launches, so it
                must be the same in every step.

        Raises:
            UsageError: there are not `batch_size` rows, or a gradient SAE got no gradients.
        """
        step = self.graphs.step
        _check_rows("x", x, step.x)
        torch.mul(x, scale, out=step.x)
        if step.target is not step.x:
            assert target is not None
            _check_rows("target", target, step.target)
            step.target.copy_(target)
        if isinstance(step.codes, RowCodes) and step.codes.effects is not None:
            if grad is None:
                raise UsageError("A gradient SAE trains on gradients: harvest with --gradients.")
            step.codes.effects.grad.copy_(grad)
        done = self.graphs.run_step(self.n_steps, after or _nothing)
        self.n_steps += 1
        return done

    def stages(self) -> dict[str, Callable[[], object]]:
        """The parts of a step, to be timed one by one. Running them spoils the SAE's weights."""
        return self.graphs.stages()

    @property
    def target(self) -> Float[Tensor, "batch d_out"]:
        """The rows that the last step reconstructed, scaled and rounded."""
        return self.graphs.step.target

    @property
    def codes(self) -> SparseCodes:
        """The codes of the last step; valid until the next step."""
        codes = self.graphs.codes()
        return merged_codes(codes) if self.rules.sae.pursues else codes

    @property
    def wider_error(self) -> Float[Tensor, ""]:
        """The squared error per row of Multi-TopK's second reconstruction."""
        return self.graphs.step.errors[-1]

    @property
    def penalties(self) -> dict[str, tuple[float, Float[Tensor, ""]]]:
        """Weight and value of each further loss term in the last step, by name."""
        return self.graphs.penalties()

    @torch.no_grad()
    def write_back(self) -> None:
        """Write the current weights into the SAE, with unit atoms."""
        w, held = self.weights, self.sae.state_dict()
        held["W_dec"].copy_(w.scale[:, None] * w.dec.value)
        held["b_dec"].copy_(w.b_dec.value)
        if "W_enc" in held:
            held["W_enc"].copy_(w.enc.value.T)
        if "b_enc" in held:
            held["b_enc"].copy_(w.b_enc.value)
        for name in (name for name in TRANSCODERS if name in held):
            held[name].copy_(getattr(w, name).value)
        if w.thresholds is not None:
            held["threshold"].copy_(w.thresholds.value)
        elif self.rules.sae.over_batch:
            held["threshold"].copy_(w.threshold)
        if w.usage is not None:
            held["density"].copy_(w.usage.density)
            held["underused"].copy_(w.usage.underused)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name; see `load`."""
        counts = torch.tensor([self.n_steps, self.graphs.aux.capacity])
        return {**self.weights.state(), "counts": counts}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Continue from these `tensors`."""
        for name, tensor in self.weights.state().items():
            tensor.copy_(tensors[name])
        self._lr = None
        self.n_steps, self.graphs.aux.capacity = tensors["counts"].tolist()
        self.graphs.aux.fit(self.n_steps)


def _nothing() -> None:
    pass


def _check_rows(name: str, given: Float[Tensor, "_ _"], memory: Float[Tensor, "batch d"]) -> None:
    if given.shape != memory.shape:
        raise UsageError(
            f"{name} has shape {tuple(given.shape)}, but the step was built for "
            f"{tuple(memory.shape)}; keep every batch whole."
        )


def fused_rule(sae: AbstractSAE) -> FusedRule | str:
    """The SAE's fused rule, or why there is none, as half a sentence."""
    rule = sae.fused_rule()
    if isinstance(rule, FusedRule) and rule.by_row and rule.k > MAX_K:
        return f"k={rule.k} is above {MAX_K}, the most that it can select"
    return rule


def _weights(held: Mapping[str, Tensor], rule: FusedRule, options: FusedOptions) -> Weights:
    """An SAE's weights before the first step."""
    W_dec, b_dec, dtype = held["W_dec"], held["b_dec"], options.precision
    # What encodes with its atoms may have no bias: this one then stays zero.
    W_enc, b_enc = held.get("W_enc"), held.get("b_enc", W_dec.new_zeros(len(W_dec)))
    weights = Weights.start(W_enc, b_enc, W_dec, b_dec, dtype, options.adam.moments)
    own: Any = {name: Parameter.of(held[name], dtype) for name in TRANSCODERS if name in held}
    if rule.jump:
        own["thresholds"] = Parameter.of(held["threshold"], torch.float32)
    weights = replace(weights, **own)
    if rule.over_batch:
        weights = replace(weights, threshold=held["threshold"].clone())
    if rule.usage is not None:
        usage = (held[name].clone() for name in ("density", "underused"))
        weights = replace(weights, usage=Usage(rule.usage, *usage))
    return weights


def _rules(sae: AbstractSAE, options: FusedOptions) -> Rules:
    rule = fused_rule(sae)
    if isinstance(rule, str):
        raise UsageError(f"This SAE has no fused step: {rule}.")
    ties: Ties = "index" if options.precision == torch.float32 else options.ties
    if ties == "float32" and not rule.has_one_edge:
        raise UsageError(
            "--ties float32 is for TopK and AbsTopK, which choose k of each row once, and "
            f"this is a {type(sae).__name__} SAE; leave it out, or take --precision float32."
        )
    return Rules(
        rule,
        total_variance=options.total_variance,
        adam=options.adam,
        clip_norm=options.clip_norm,
        aux=None if rule.aux is None else AuxRules(*rule.aux, options.dead_after),
        ties=ties,
    )

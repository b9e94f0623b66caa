"""Training an SAE by kernels alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.kernels.cuda import MAX_K
from saelab.kernels.rules import FusedRule
from saelab.kernels.triton.codes.rows import RowCodes
from saelab.kernels.triton.step.aux_k import AuxRules
from saelab.kernels.triton.step.rules import AdamRules, Launch, Rules
from saelab.kernels.triton.step.step import Step
from saelab.kernels.triton.weights import Weights
from saelab.sae.base import AbstractSAE, LossContext
from saelab.training.fused_graphs import Graphs, OneGraph, TwoGraphs
from saelab.types import SparseCodes


@dataclass(frozen=True)
class FusedOptions:
    """What a fused step is built for.

    Attributes:
        batch_size: rows of every batch.
        total_variance: V, which the squared error is divided by.
        precision: of the products, and of what is stored for them.
        dead_after: tokens of silence after which AuxK revives a latent.
        clip_norm: the largest norm of all gradients; None: no limit. A limit costs a second pass
            over the codes' gathers, since Adam may move nothing before the norm is known.
        launch: shapes of the latent-major pass.
        unrounded: whether the k largest are those before pre-activations are rounded to
            `precision`, see `saelab.kernels.triton.select.ties`.
        adam: how gradients move the weights.
    """

    batch_size: int
    total_variance: float
    precision: torch.dtype = torch.bfloat16
    dead_after: int = 10_000_000
    clip_norm: float | None = None
    launch: Launch = Launch()  # noqa: RUF009 - frozen
    unrounded: bool = False
    adam: AdamRules = AdamRules()  # noqa: RUF009 - frozen


class FusedStep:
    """One optimizer step of an SAE, with AuxK, clipping, Adam, projection and renormalisation.

    The step is that of `TrainingState.advance`. On CUDA it is one graph or two, see `fused_graphs`,
    which read the learning rate from the device. Elsewhere it runs under Triton's interpreter,
    which is for tests.

        step = FusedStep(sae, FusedOptions(batch_size=8192, total_variance=V))
        for x in batches:
            step.set_lr(1e-4)
            step(x)
        step.write_back()

    Selection is exact on the pre-activations as they are stored, in the type of `precision`; equal
    ones are kept by lowest index. Weights and moments are float32 and sums are accumulated in
    float32. Two runs agree to the bit on one kind of device and one version of the libraries.

    Attributes:
        mse_sum: of the last step, a scalar on the device.
        error: what the loss counts of it; for Matryoshka, the prefixes' errors.
        gradient_norm: of the last step, before clipping; 0 where there is no limit to compare with.
        since_fired: `[d_sae]`, tokens since each latent last fired.
    """

    def __init__(
        self, sae: AbstractSAE, options: FusedOptions, device: torch.device | None = None
    ) -> None:
        """Take the SAE's weights to `device` (its own by default); see `write_back`.

        Raises:
            UsageError: it is of another kind, its loss has a term that the kernels do not know,
                or k is too large.
        """
        self.sae, self.rules = sae, _rules(sae, options)
        device = sae.W_dec.device if device is None else device
        held = {name: value.to(device) for name, value in sae.state_dict().items()}
        W_enc, b_enc, W_dec, b_dec = (held[n] for n in ("W_enc", "b_enc", "W_dec", "b_dec"))
        learned = held["threshold"] if self.rules.sae.jump else None
        self.weights = Weights.start(W_enc, b_enc, W_dec, b_dec, options.precision, learned)
        step = Step(self.weights, self.rules, options.batch_size, options.launch)
        self.graphs: Graphs = TwoGraphs(step) if self.rules.sae.jump else OneGraph(step)
        self.n_steps = 0
        self.mse_sum, self.since_fired = step.mse_sum, self.weights.since_fired
        self.gradient_norm, self.error = step.gradient_norm, step.error

    def set_lr(self, lr: float | int) -> None:
        """The learning rate of the steps from now on."""
        self.weights.lr.fill_(lr)

    def prepare(self, context: LossContext) -> None:
        """What the next step must know beside the batch."""
        self.graphs.tell(self.sae.step_values(context))

    @torch.no_grad()
    def __call__(
        self,
        x: Float[Tensor, "batch d_in"],
        scale: float = 1.0,
        grad: Float[Tensor, "batch d_in"] | None = None,
    ) -> None:
        """One step on `scale * x`, which is rounded to `precision`.

        Args:
            x: `batch_size` rows.
            scale: of the rows.
            grad: dL/dx at the rows, for a gradient SAE; only its direction counts.

        Raises:
            UsageError: there are not `batch_size` rows, or a gradient SAE got no gradients.
        """
        step = self.graphs.step
        if x.shape != step.x.shape:
            raise UsageError(
                f"x has shape {tuple(x.shape)}, but the step was built for "
                f"{tuple(step.x.shape)}; keep every batch whole."
            )
        torch.mul(x, scale, out=step.x)
        if isinstance(step.codes, RowCodes) and step.codes.effects is not None:
            if grad is None:
                raise UsageError("A gradient SAE trains on gradients: harvest with --gradients.")
            step.codes.effects.grad.copy_(grad)
        self.graphs.advance(self.n_steps)
        self.n_steps += 1

    def stages(self) -> dict[str, Callable[[], object]]:
        """The parts of a step, to be timed one by one; the SAE is of no use afterwards."""
        return self.graphs.stages()

    @property
    def x(self) -> Float[Tensor, "batch d_in"]:
        """The rows of the last step, scaled and rounded."""
        return self.graphs.step.x

    @property
    def codes(self) -> SparseCodes:
        """The codes of the last step, until the next one."""
        return self.graphs.codes()

    @property
    def wider_error(self) -> Float[Tensor, ""]:
        """The squared error a row of Multi-TopK's second reconstruction."""
        return self.graphs.step.errors[-1]

    @property
    def penalties(self) -> dict[str, tuple[float, Float[Tensor, ""]]]:
        """Weights and sizes of what else was minimised in the last step, by name."""
        return self.graphs.penalties()

    @torch.no_grad()
    def write_back(self) -> None:
        """Give the SAE the present weights, its atoms of unit norm."""
        w, held = self.weights, self.sae.state_dict()
        held["W_dec"].copy_(w.scale[:, None] * w.dec.value)
        held["W_enc"].copy_(w.enc.value.T)
        held["b_enc"].copy_(w.b_enc.value)
        held["b_dec"].copy_(w.b_dec.value)
        if w.thresholds is not None:
            held["threshold"].copy_(w.thresholds.value)
        elif self.rules.sae.over_batch:
            held["threshold"].copy_(w.threshold)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name; `load` takes it back."""
        counts = torch.tensor([self.n_steps, self.graphs.aux.capacity])
        return {**self.weights.state(), "counts": counts}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Continue where `tensors` were taken."""
        for name, tensor in self.weights.state().items():
            tensor.copy_(tensors[name])
        self.n_steps, self.graphs.aux.capacity = tensors["counts"].tolist()


def fused_rule(sae: AbstractSAE) -> FusedRule | str:
    """The rule of an SAE's fused step, or why there is none, as half a sentence."""
    if sae.is_transcoder:
        return "it reconstructs what it reads, and this is a transcoder"
    rule = sae.fused_rule()
    if isinstance(rule, FusedRule) and rule.by_row and rule.k > MAX_K:
        return f"k={rule.k} is above {MAX_K}, the most that it can select"
    return rule


def _rules(sae: AbstractSAE, options: FusedOptions) -> Rules:
    rule = fused_rule(sae)
    if isinstance(rule, str):
        raise UsageError(f"This SAE has no fused step: {rule}.")
    unrounded = options.unrounded and options.precision != torch.float32
    if unrounded and not rule.has_one_edge:
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
        unrounded=unrounded,
    )

"""Training an SAE by kernels alone: one CUDA graph a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.kernels.sizes import ceil_div, power_of_two
from saelab.kernels.triton_aux import AuxRules, AuxStep
from saelab.kernels.triton_ragged import Ragged
from saelab.kernels.triton_rows import RowCodes
from saelab.kernels.triton_rules import AdamRules, Launch
from saelab.kernels.triton_train import Step
from saelab.kernels.triton_weights import Weights
from saelab.sae.base import AbstractSAE, LossContext
from saelab.sae.jumprelu import JumpReLU
from saelab.sae.matryoshka import Matryoshka
from saelab.sae.unit_norm import AbstractUnitNormSAE
from saelab.training.fused_rules import OVER_BATCH, fused_rules
from saelab.types import SparseCodes

WARM_UP = 3
LOOK_EVERY = 16
"""Steps between looks at how many latents may be dead, each of which waits for the device."""
LEAST_CAPACITY = 128


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
            `precision`, see `triton_ties`.
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

    The step is that of `TrainingState.advance`. On CUDA it is one graph, which reads the learning
    rate from the device and never waits; every 16 steps the number of latents that may be dead is
    looked at, which decides for how many AuxK has room. Elsewhere it runs under Triton's
    interpreter, which is for tests.

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
        self.rules = fused_rules(
            sae,
            options.total_variance,
            clip_norm=options.clip_norm,
            dead_after=options.dead_after,
            adam=options.adam,
            unrounded=options.unrounded and options.precision != torch.float32,
        )
        assert isinstance(sae, AbstractUnitNormSAE | JumpReLU)
        device = sae.W_dec.device if device is None else device
        self.sae, self.options = sae, options
        W_enc, b_enc, W_dec, b_dec = (
            p.detach().to(device) for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
        )
        learned = sae.threshold.detach().to(device) if isinstance(sae, JumpReLU) else None
        self.weights = Weights.start(W_enc, b_enc, W_dec, b_dec, options.precision, learned)
        self._step = self._new_step()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._aux: dict[int, AuxStep] = {}
        self.n_steps = 0
        self.capacity = 0
        self.mse_sum, self.since_fired = self._step.mse_sum, self.weights.since_fired
        self.gradient_norm, self.error = self._step.gradient_norm, self._step.error

    def set_lr(self, lr: float | int) -> None:
        """The learning rate of the steps from now on."""
        self.weights.lr.fill_(lr)

    def prepare(self, context: LossContext) -> None:
        """What the next step must know beside the batch."""
        if isinstance(self.sae, Matryoshka):
            self.set_prefixes(self.sae.prefixes(context))

    def set_prefixes(self, prefixes: Sequence[int]) -> None:
        """The prefix lengths of a Matryoshka SAE, as many as it has, from now on."""
        codes = self._step.codes
        assert isinstance(codes, Ragged)
        codes.lows.copy_(torch.tensor([0, *prefixes[:-1]]))

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
        step = self._step
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
        self._advance()
        self.n_steps += 1

    def _new_step(self) -> Step:
        return Step(self.weights, self.rules, self.options.batch_size, self.options.launch)

    def _advance(self) -> None:
        """One step on what `x` holds."""
        step = self._step
        if self.rules.aux is not None and self.n_steps % LOOK_EVERY == 0:
            self.capacity = self._capacity(self.rules.aux)
        if not step.x.is_cuda:
            step.run(aux=self._aux_step())
            return
        if self.capacity not in self._graphs:
            self._capture()
        self._graphs[self.capacity].replay()

    def stages(self) -> dict[str, Callable[[], object]]:
        """The parts of a step, to be timed one by one; the SAE is of no use afterwards."""
        return self._step.stages()

    @property
    def x(self) -> Float[Tensor, "batch d_in"]:
        """The rows of the last step, scaled and rounded."""
        return self._step.x

    @property
    def codes(self) -> SparseCodes:
        """The codes of the last step, until the next one."""
        codes = self._step.codes
        offsets = codes.starts[: -1 : self.rules.groups] if isinstance(codes, Ragged) else None
        return SparseCodes(*self._step.kept(), len(self.since_fired), offsets)

    @property
    def wider_error(self) -> Float[Tensor, ""]:
        """The squared error a row of Multi-TopK's second reconstruction."""
        return self._step.errors[-1]

    @property
    def penalties(self) -> dict[str, tuple[float, Float[Tensor, ""]]]:
        """Weights and sizes of what else was minimised in the last step, by name."""
        if not self.capacity or self.rules.aux is None:
            return {}
        return {"aux_k": (self.rules.aux.coefficient, self.aux_loss)}

    @property
    def aux_loss(self) -> Float[Tensor, ""]:
        """AuxK of the last step, before its coefficient; 0 where nothing was dead."""
        aux = self._aux.get(self.capacity)
        return self.mse_sum.new_zeros(()) if aux is None else aux.loss

    @torch.no_grad()
    def write_back(self) -> None:
        """Give the SAE the present weights, its atoms of unit norm."""
        w, sae = self.weights, self.sae
        sae.W_dec.copy_(w.scale[:, None] * w.dec.value)
        sae.W_enc.copy_(w.enc.value.T)
        sae.b_enc.copy_(w.b_enc.value)
        sae.b_dec.copy_(w.b_dec.value)
        if isinstance(sae, OVER_BATCH):
            sae.threshold.copy_(w.threshold)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name; `load` takes it back."""
        counts = torch.tensor([self.n_steps, self.capacity])
        return {**self._state(), "counts": counts}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Continue where `tensors` were taken."""
        for name, tensor in self._state().items():
            tensor.copy_(tensors[name])
        self.n_steps, self.capacity = tensors["counts"].tolist()

    def _state(self) -> dict[str, Tensor]:
        w = self.weights
        names = {"dec": w.dec, "enc": w.enc, "b_enc": w.b_enc, "b_dec": w.b_dec}
        out = {"scale": w.scale, "since_fired": w.since_fired, "lr": w.lr, "step": w.step}
        out["threshold"] = w.threshold
        if w.thresholds is not None:
            names["thresholds"] = w.thresholds
        for name, p in names.items():
            out |= {name: p.value, f"{name}.m": p.m, f"{name}.v": p.v, f"{name}.copy": p.copy}
        return out

    def _capacity(self, rules: AuxRules) -> int:
        """Room for every latent that can be dead before the next look, in steps of about an eighth.

        Depends on nothing but the state at this step, so a resumed run makes the same choice.
        """
        soon = rules.dead_after - LOOK_EVERY * self.options.batch_size
        n = int((self.since_fired >= soon).sum())
        if n == 0:
            return 0
        step = max(LEAST_CAPACITY, power_of_two(n) // 8)
        return min(len(self.since_fired), ceil_div(n, step) * step)

    def _aux_step(self) -> AuxStep | None:
        if self.capacity == 0 or self.rules.aux is None:
            return None
        if self.capacity not in self._aux:
            # Only one size is in use at a time, and sizes seldom change back.
            self._aux.clear()
            self._graphs = {n: graph for n, graph in self._graphs.items() if n == 0}
            self._aux[self.capacity] = AuxStep(
                self.weights, self.rules.aux, self.capacity, signed=self.rules.signed
            )
        return self._aux[self.capacity]

    def _capture(self) -> None:
        """Record the step. Kernels are compiled by running it, and what that changed is undone."""
        aux = self._aux_step()
        saved = [tensor.clone() for tensor in self._state().values()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._step.run(aux=aux)
        torch.cuda.synchronize()
        for tensor, before in zip(self._state().values(), saved, strict=True):
            tensor.copy_(before)
        del saved
        self._graphs[self.capacity] = record(lambda side: self._step.run(side, aux))


def record(run: Callable[[torch.cuda.Stream], object]) -> torch.cuda.CUDAGraph:
    """What `run` gives to the device, whose kernels must be compiled; it gets a second stream."""
    # What little the second stream does should not queue behind a full device.
    side = torch.cuda.Stream(priority=-1)
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on allocating and copying: the store is read by one.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run(side)
    return graph

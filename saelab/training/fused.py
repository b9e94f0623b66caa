"""Training a TopK or AbsTopK SAE by kernels alone: no autograd, one CUDA graph a step."""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.kernels.triton_select import MAX_K
from saelab.kernels.triton_train import Launch, Rules, Step, Weights
from saelab.sae.abs_topk import AbsTopK
from saelab.sae.base import AbstractSAE
from saelab.sae.topk import TopK

WARM_UP = 3
BETAS = (0.9, 0.999)
ADAM_EPS = 6.25e-10  # arXiv 2406.04093, appendix A.3


class FusedStep:
    """One optimizer step of an SAE, with Adam, the tangent projection and the renormalisation.

    The step is that of `TrainingState.advance` with AuxK and clipping off: mse_sum / V, Adam,
    atoms on the unit sphere. On CUDA it is one graph, which reads the learning rate from the device
    and never waits. Elsewhere it runs under Triton's interpreter, which is for tests.

        step = FusedStep(sae, batch_size=8192, total_variance=V)
        for x in batches:
            step.set_lr(1e-4)
            step(x)
        step.write_back()

    Selection is exact on the pre-activations as they are stored, in the type of `precision`; equal
    ones are kept by lowest index. Weights and moments are float32 and sums are accumulated in
    float32. Two runs agree to the bit on one kind of device and one version of the libraries.

    Attributes:
        mse_sum: of the last step, a scalar on the device.
        since_fired: `[d_sae]`, tokens since each latent last fired.
    """

    def __init__(
        self,
        sae: AbstractSAE,
        *,
        batch_size: int,
        total_variance: float,
        precision: torch.dtype = torch.bfloat16,
        launch: Launch = Launch(),  # noqa: B008 - frozen
    ) -> None:
        """Take the SAE's weights; it is not changed before `write_back`.

        Raises:
            UsageError: it is of another kind, its loss has a term that the kernels do not know,
                or k is too large.
        """
        sae = _trainable(sae)
        rules = Rules(sae.config.k, isinstance(sae, AbsTopK), total_variance, BETAS, ADAM_EPS)
        self.sae = sae
        self.weights = Weights.start(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, precision)
        self._step = Step(self.weights, rules, batch_size, launch)
        self._graph: torch.cuda.CUDAGraph | None = None
        self.mse_sum, self.since_fired = self._step.mse_sum, self.weights.since_fired

    def set_lr(self, lr: float | int) -> None:
        """The learning rate of the steps from now on."""
        self.weights.lr.fill_(lr)

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "batch d_in"]) -> None:
        """One step on these rows, which are rounded to `precision`.

        Raises:
            UsageError: there are not `batch_size` rows.
        """
        step = self._step
        if x.shape != step.x.shape:
            raise UsageError(
                f"x has shape {tuple(x.shape)}, but the step was built for "
                f"{tuple(step.x.shape)}; keep every batch whole."
            )
        if step.x.is_cuda and self._graph is None:
            self._capture(x)
        step.x.copy_(x)
        if self._graph is None:
            step.run()
        else:
            self._graph.replay()

    @torch.no_grad()
    def write_back(self) -> None:
        """Give the SAE the present weights, its atoms of unit norm."""
        w, sae = self.weights, self.sae
        sae.W_dec.copy_(w.scale[:, None] * w.dec.value)
        sae.W_enc.copy_(w.enc.value.T)
        sae.b_enc.copy_(w.b_enc.value)
        sae.b_dec.copy_(w.b_dec.value)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name, in place: copy into these to restore a state."""
        w = self.weights
        names = {"dec": w.dec, "enc": w.enc, "b_enc": w.b_enc, "b_dec": w.b_dec}
        out = {"scale": w.scale, "since_fired": w.since_fired, "lr": w.lr, "step": w.step}
        for name, p in names.items():
            out |= {name: p.value, f"{name}.m": p.m, f"{name}.v": p.v, f"{name}.copy": p.copy}
        return out

    def _capture(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Record the step. Kernels are compiled by running it, and what that changed is undone."""
        saved = [tensor.clone() for tensor in self.tensors().values()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step.x.copy_(x)
            for _ in range(WARM_UP):
                self._step.run()
        torch.cuda.synchronize()
        for tensor, before in zip(self.tensors().values(), saved, strict=True):
            tensor.copy_(before)
        del saved
        # What little the second stream does should not queue behind a full device.
        side = torch.cuda.Stream(priority=-1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step.run(side)
        self._graph = graph


def _trainable(sae: AbstractSAE) -> TopK | AbsTopK:
    if not isinstance(sae, TopK | AbsTopK):
        raise UsageError(
            f"A {type(sae).__name__} has no fused step; only TopK and AbsTopK by rows have one."
        )
    config = sae.config
    if config.k > MAX_K:
        raise UsageError(f"k={config.k} is above {MAX_K}, the most that the fused step can select.")
    extra = {"aux_coefficient": config.aux_coefficient}
    if isinstance(sae, TopK):
        extra["multi_k_coefficient"] = sae.config.multi_k_coefficient
    for name, value in extra.items():
        if value:
            raise UsageError(
                f"{name}={value} adds a loss that the fused step does not have; set it to 0."
            )
    return sae

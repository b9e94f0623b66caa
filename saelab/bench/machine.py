"""The least time of a training step on this machine, and the time of plain torch."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from saelab.activations.dtypes import itemsize
from saelab.activations.format import Dtype


@dataclass(frozen=True)
class StepShape:
    """A training step's size.

    Attributes:
        d_in: width of the activations.
        d_sae: latents.
        k: active latents per row.
        batch: rows per batch.
        dead: share of the latents that are dead, which AuxK revives.
        moments: dtype of Adam's moments.
    """

    d_in: int
    d_sae: int
    k: int
    batch: int = 8192
    dead: float = 0.0
    moments: Dtype = field(default="float32", kw_only=True)

    @property
    def kind(self) -> str:
        """What is not as usual, to be added to a name; often empty."""
        dead = f", {self.dead:.3g} dead" if self.dead else ""
        return dead + (f", {self.moments} moments" if self.moments != "float32" else "")

    @override
    def __str__(self) -> str:
        return f"{self.d_in}/{self.d_sae}/{self.k} batch {self.batch}{self.kind}"


SPARSE = 5
"""Bytes that a step moves per number of its codes' atoms, `batch x k x d_in`. With it the law is
within 10 % of the TopK steps measured on an H100 and an H200 (`measured/`)."""


@dataclass(frozen=True)
class Rates:
    """The device's measured rates: bfloat16 FLOP/s, and bytes copied (read + written) /s."""

    matmul: float
    copy: float

    def parts(self, shape: StepShape, products: int = 1, matrices: int = 2) -> dict[str, float]:
        """Seconds of the parts of a TopK step by kernels alone; the first three are its floor."""
        pre_acts = products * shape.batch * shape.d_sae
        # The weight and both moments are read and written, a bfloat16 copy is written.
        weight = 10 + 4 * itemsize(shape.moments)
        return {
            "encoder's product": 2 * pre_acts * shape.d_in / self.matmul,
            "pre-activations": 4 * pre_acts / self.copy,
            "weights and moments": weight * matrices * shape.d_in * shape.d_sae / self.copy,
            "sparse codes": SPARSE * shape.batch * shape.k * shape.d_in / self.copy,
        }

    def floor(self, shape: StepShape, products: int = 1, matrices: int = 2) -> float:
        """Seconds that a step with a dense encoder of `products` products and Adam needs.

        It counts the encoder's products, bfloat16 pre-activations of each written and read once,
        and 26 bytes per weight of both matrices, or of the only one: float32 weight and moments
        read and written, and a bfloat16 copy; 18 with moments in bfloat16.
        """
        parts = self.parts(shape, products, matrices)
        return sum(parts.values()) - parts["sparse codes"]


NO_RATES = Rates(1.0, 1.0)
"""Rates for times whose floor is not asked for."""


def times(run: Callable[[], object], *, steps: int, device: torch.device) -> list[float]:
    """Seconds of each of `steps` calls, by the device's clock on CUDA."""
    if device.type != "cuda":
        out = []
        for _ in range(steps):
            start = time.perf_counter()
            run()
            out.append(time.perf_counter() - start)
        return out
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]


def measure_rates(
    device: torch.device,
    *,
    size: int = 8192,
    rounds: int = 20,
    dtype: torch.dtype = torch.bfloat16,
) -> Rates:
    """Medians of `rounds` square matrix products, and of as many copies of `32 size^2` bytes.

    The products are of numbers of type `dtype`.
    """
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.randn(8, size, size // 4, 4, device=device, generator=generator)
    target = torch.empty_like(source)
    medians = []
    for run in (lambda: torch.mm(a, b, out=product), lambda: target.copy_(source)):
        times(run, steps=3, device=device)
        medians.append(statistics.median(times(run, steps=rounds, device=device)))
    moved = 2 * source.numel() * source.element_size()
    return Rates(2 * size**3 / medians[0], moved / medians[1])


class DenseStep:
    """The same step in plain torch: autograd, bfloat16 autocast, dense codes, a fused Adam.

    With `compiled`, torch.compile compiles forward and backward.
    """

    def __init__(
        self, shape: StepShape, device: torch.device, *, total_variance: float, compiled: bool
    ) -> None:
        generator = torch.Generator(device).manual_seed(0)
        atoms = torch.randn(shape.d_sae, shape.d_in, device=device, generator=generator)
        self.W_dec = nn.Parameter(F.normalize(atoms, dim=1))
        self.W_enc = nn.Parameter(self.W_dec.detach().T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(shape.d_sae, device=device))
        self.b_dec = nn.Parameter(torch.zeros(shape.d_in, device=device))
        weights = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]
        self._adam = torch.optim.Adam(weights, lr=1e-4, eps=6.25e-10, fused=device.type == "cuda")
        self._k, self._variance, self._device = shape.k, total_variance, device
        self._loss = (
            torch.compile(self._plain_loss, dynamic=False) if compiled else self._plain_loss
        )

    def forget(self) -> None:
        """Free the device's memory; the step must not be used afterwards."""
        torch._dynamo.reset()  # Nothing public drops compiled code.
        for parameter in self._adam.param_groups[0]["params"]:
            parameter.data, parameter.grad = parameter.data.new_empty(0), None
        self._adam.state.clear()

    def __call__(self, x: Float[Tensor, "batch d_in"]) -> None:
        """One step."""
        self._adam.zero_grad(set_to_none=True)
        self._loss(x).backward()
        with torch.no_grad():
            grad = self.W_dec.grad
            assert grad is not None
            grad -= (grad * self.W_dec).sum(1, keepdim=True) * self.W_dec
            self._adam.step()
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))

    def _plain_loss(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            pre_acts = (x - self.b_dec) @ self.W_enc + self.b_enc.bfloat16()
            values, indices = pre_acts.topk(self._k, dim=-1)
            codes = torch.zeros_like(pre_acts).scatter(-1, indices, values.relu())
            x_hat = codes @ self.W_dec + self.b_dec
        return (x_hat.float() - x.float()).pow(2).sum(-1).mean() / self._variance

"""What a fused step changes: weights, Adam's moments, and the training's progress."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.torch.zipf import Usage


@dataclass(frozen=True)
class Parameter:
    """A parameter in float32 with Adam's moments, and its copy in the products' dtype.

    The moments are float32; those of the latents' rows may be bfloat16.
    """

    value: Float[Tensor, "*shape"]
    m: Float[Tensor, "*shape"]
    v: Float[Tensor, "*shape"]
    copy: Float[Tensor, "*shape"]

    @classmethod
    def of(
        cls,
        value: Float[Tensor, "*shape"],
        dtype: torch.dtype,
        moments: torch.dtype = torch.float32,
    ) -> "Parameter":
        """The parameter before the first step, in memory of its own."""
        value = value.detach().float().clone(memory_format=torch.contiguous_format)
        # A copy even if the dtypes agree, since the kernels write both.
        copy = value.to(dtype, copy=True)
        m, v = (torch.zeros_like(value, dtype=moments) for _ in range(2))
        return cls(value, m, v, copy)

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tensors in the order of the kernels' arguments."""
        return self.value, self.m, self.v, self.copy


class Decoder(NamedTuple):
    """What a decode reads: the atoms `scale * W`, the decoder's bias, and W before rounding."""

    W: Float[Tensor, "d_sae d_out"]
    scale: Float[Tensor, " d_sae"]
    bias: Float[Tensor, " d_out"]
    exact: Float[Tensor, "d_sae d_out"]


@dataclass(frozen=True)
class Weights:
    """The SAE's weights, latent-major, and the training's progress.

    Attributes:
        dec: `[d_sae d_out]`; the atoms are `scale * dec`, which are unit vectors.
        enc: `[d_sae d_in]`, the encoder's transpose; `dec` itself if one matrix does both. Then
            `scale` is 1, and steps keep atoms as they are to be.
        b_enc: `[d_sae]`.
        b_dec: `[d_out]`.
        scale: `[d_sae]`.
        since_fired: `[d_sae]`, tokens since each latent last fired.
        lr: Adam's learning rate; set it between steps.
        step: number of steps done.
        threshold: running mean of the threshold above which the batch's codes fire, or one for
            each latent; NaN at first.
        thresholds: `[d_sae]`, JumpReLU's thresholds.
        usage: how often each latent fires, if the SAE counts it.
        b_in: `[d_in]`, a transcoder's bias for what it reads.
        W_skip: `[d_in d_out]`, a transcoder's skip connection.
    """

    dec: Parameter
    enc: Parameter
    b_enc: Parameter
    b_dec: Parameter
    scale: Float[Tensor, " d_sae"]
    since_fired: Int[Tensor, " d_sae"]
    lr: Float[Tensor, " 1"]
    step: Float[Tensor, " 1"]
    threshold: Float[Tensor, "*d_sae"]
    thresholds: Parameter | None = None
    usage: Usage | None = None
    b_in: Parameter | None = None
    W_skip: Parameter | None = None

    def state(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name."""
        names = {"dec": self.dec, "enc": self.enc, "b_enc": self.b_enc, "b_dec": self.b_dec}
        if self.enc is self.dec:
            del names["enc"]
        out = {"scale": self.scale, "since_fired": self.since_fired, "lr": self.lr}
        out |= {"step": self.step, "threshold": self.threshold}
        if self.usage is not None:
            out |= {"density": self.usage.density, "underused": self.usage.underused}
        further = {"thresholds": self.thresholds, "b_in": self.b_in, "W_skip": self.W_skip}
        names |= {name: p for name, p in further.items() if p is not None}
        for name, p in names.items():
            out |= {name: p.value, f"{name}.m": p.m, f"{name}.v": p.v, f"{name}.copy": p.copy}
        return out

    @property
    def dictionary(self) -> Decoder:
        """The decoder in the products' dtype."""
        return Decoder(self.dec.copy, self.scale, self.b_dec.value, self.dec.value)

    @property
    def learned(self) -> Parameter:
        """The thresholds, of an SAE that has its own."""
        assert self.thresholds is not None
        return self.thresholds

    def make_unit_(self) -> None:
        """Divide the atoms by their norms for good, as pursuits read them."""
        self.dec.value.mul_(self.scale[:, None])
        self.dec.copy.copy_(self.dec.value)
        self.scale.fill_(1)

    @classmethod
    def start(
        cls,
        W_enc: Float[Tensor, "d_in d_sae"] | None,
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"],
        b_dec: Float[Tensor, " d_out"],
        dtype: torch.dtype,
        moments: torch.dtype = torch.float32,
    ) -> "Weights":
        """These weights before the first step; copies have dtype `dtype`, the rows' moments theirs.

        Without W_enc, W_dec's transpose encodes, and atoms are not scaled.
        """
        dec = Parameter.of(W_dec, dtype, moments)
        scale = 1 / dec.value.norm(dim=1).clamp_min(1e-12)
        one = torch.zeros(1, dtype=torch.float64, device=W_dec.device)
        return cls(
            dec,
            dec if W_enc is None else Parameter.of(W_enc.T, dtype, moments),
            Parameter.of(b_enc, dtype),
            Parameter.of(b_dec, dtype),
            torch.ones_like(scale) if W_enc is None else scale,
            torch.zeros(len(W_dec), dtype=torch.int64, device=W_dec.device),
            one,
            one.clone(),
            one.new_full((), torch.nan, dtype=torch.float32),
        )

"""What a fused step changes: the weights, Adam's moments, and where the training stands."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Parameter:
    """A parameter in float32 with Adam's moments, and its copy in the type of the products."""

    value: Float[Tensor, "*shape"]
    m: Float[Tensor, "*shape"]
    v: Float[Tensor, "*shape"]
    copy: Float[Tensor, "*shape"]

    @classmethod
    def of(cls, value: Float[Tensor, "*shape"], dtype: torch.dtype) -> "Parameter":
        """Without any step behind it; owns its memory."""
        value = value.detach().float().clone(memory_format=torch.contiguous_format)
        # A copy of its own also where the types agree: the kernels write both.
        copy = value.to(dtype, copy=True)
        return cls(value, torch.zeros_like(value), torch.zeros_like(value), copy)

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As the kernels take it."""
        return self.value, self.m, self.v, self.copy


class Decoder(NamedTuple):
    """What a decode reads: the atoms `scale * W`, and the decoder's bias."""

    W: Float[Tensor, "d_sae d_in"]
    scale: Float[Tensor, " d_sae"]
    bias: Float[Tensor, " d_in"]


@dataclass(frozen=True)
class Weights:
    """The SAE, latent-major, and where its training stands.

    Attributes:
        dec: `[d_sae d_in]`; the atoms are `scale * dec`, which are unit vectors.
        enc: `[d_sae d_in]`, the encoder's transpose.
        b_enc: `[d_sae]`.
        b_dec: `[d_in]`.
        scale: `[d_sae]`.
        since_fired: `[d_sae]`, tokens since each latent last fired.
        lr: Adam's learning rate, to be set between steps.
        step: steps done.
        threshold: above which codes of the whole batch fire, on average so far; NaN at first.
        thresholds: `[d_sae]`, JumpReLU's.
    """

    dec: Parameter
    enc: Parameter
    b_enc: Parameter
    b_dec: Parameter
    scale: Float[Tensor, " d_sae"]
    since_fired: Int[Tensor, " d_sae"]
    lr: Float[Tensor, " 1"]
    step: Float[Tensor, " 1"]
    threshold: Float[Tensor, ""]
    thresholds: Parameter | None = None

    def state(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name."""
        names = {"dec": self.dec, "enc": self.enc, "b_enc": self.b_enc, "b_dec": self.b_dec}
        out = {"scale": self.scale, "since_fired": self.since_fired, "lr": self.lr}
        out |= {"step": self.step, "threshold": self.threshold}
        if self.thresholds is not None:
            names["thresholds"] = self.thresholds
        for name, p in names.items():
            out |= {name: p.value, f"{name}.m": p.m, f"{name}.v": p.v, f"{name}.copy": p.copy}
        return out

    @property
    def dictionary(self) -> Decoder:
        """The decoder, in the type of the products."""
        return Decoder(self.dec.copy, self.scale, self.b_dec.value)

    @property
    def learned(self) -> Parameter:
        """The thresholds of an SAE that has them."""
        assert self.thresholds is not None
        return self.thresholds

    @classmethod
    def start(
        cls,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        dtype: torch.dtype,
        thresholds: Float[Tensor, " d_sae"] | None = None,
    ) -> "Weights":
        """These weights before the first step; the copies have type `dtype`."""
        one = torch.zeros(1, dtype=torch.float64, device=W_dec.device)
        return cls(
            Parameter.of(W_dec, dtype),
            Parameter.of(W_enc.T, dtype),
            Parameter.of(b_enc, dtype),
            Parameter.of(b_dec, dtype),
            1 / W_dec.detach().float().norm(dim=1).clamp_min(1e-12),
            torch.zeros(len(W_dec), dtype=torch.int64, device=W_dec.device),
            one,
            one.clone(),
            one.new_full((), torch.nan, dtype=torch.float32),
            None if thresholds is None else Parameter.of(thresholds, torch.float32),
        )

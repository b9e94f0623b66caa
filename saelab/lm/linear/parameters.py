"""A checkpoint's parameters by their names in transformers, for either back end."""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from saelab.config import UsageError
from saelab.lm.linear.paths import Norm, Rotary

FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary types whose frequencies do not depend on the prompt's length."""


class Parameters:
    """Parameters and buffers of a module, converted to one dtype and device."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        # TransformerLens wraps each module in a module of its own.
        found = [*module.state_dict().items(), *module.named_buffers()]
        self._values: Mapping[str, Tensor] = {_plain(n): value.detach() for n, value in found}
        self._modules = {
            _plain(name): part
            for name, part in module.named_modules()
            if not hasattr(part, "original_component")
        }
        self._dtype, self._device = dtype, device

    def __contains__(self, name: str) -> bool:
        """Whether the parameter or buffer exists."""
        return name in self._values

    def __call__(self, name: str) -> Tensor:
        """A parameter or buffer, converted."""
        return self._values[name].to(self._device, self._dtype)

    def own_dtype(self, name: str) -> Tensor:
        """A parameter or buffer in the model's own dtype."""
        return self._values[name].to(self._device)

    def or_zeros(self, name: str, size: int) -> Tensor:
        """A parameter or buffer, or zeros if the model has none of this name."""
        return self(name) if name in self else self.full(0.0, size)

    def full(self, value: float, *shape: int) -> Tensor:
        """A constant with the dtype and device of the others."""
        return torch.full(shape, value, dtype=self._dtype, device=self._device)

    def projection(
        self, name: str, heads: int, repeat: int = 1
    ) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head"]]:
        """Weight and bias of an `nn.Linear` to heads; shared heads are repeated."""
        W = rearrange(self(f"{name}.weight"), "(h e) m -> h m e", h=heads)
        b = rearrange(self.or_zeros(f"{name}.bias", heads * W.shape[2]), "(h e) -> h e", h=heads)
        return W.repeat_interleave(repeat, dim=0), b.repeat_interleave(repeat, dim=0)

    def layer_norm(self, name: str, epsilon: float) -> Norm:
        """A layer norm with a gain, and a bias if it has one."""
        gain = self(f"{name}.weight")
        return Norm(gain, self.or_zeros(f"{name}.bias", len(gain)), epsilon, centred=True)

    def rotary(self, module: str, config: Any, kind: str | None) -> Rotary:  # noqa: ANN401
        """The rotation of a rotary module; `kind` is the layer type if rotations depend on it.

        Raises:
            UsageError: the frequencies depend on the prompt's length.
        """
        settings = config.rope_parameters or {}
        settings = settings if kind is None else settings[kind]
        if (rope := settings.get("rope_type", "default")) not in FIXED_ROPE:
            raise UsageError(
                f"The model has rotary positions of type {rope!r}, whose frequencies depend on the "
                f"prompt's length; attribution knows {', '.join(FIXED_ROPE)}."
            )
        at = "" if kind is None else f"{kind}_"
        factor = getattr(self._modules[module], f"{at}attention_scaling", 1.0)
        return Rotary(self(f"{module}.{at}inv_freq"), float(factor))


def _plain(name: str) -> str:
    return name.replace("._original_component", "")

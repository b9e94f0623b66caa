"""The state of an SAE in training that several processes hold: whole in checkpoints, cut here."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from saelab.sae.base import AbstractSAE
from saelab.sae.spread import dims_of
from saelab.shard import LatentShard, Replicas

STATE = ("sae", "ema")
MOMENT = re.compile(r"optimizer\.(\d{1,6})\.(\w+)")
WHOLE = ("b_dec", "b_in", "W_skip", "lr", "step", "counts")
"""Tensors of a fused step that count no latents."""


class Spread:
    """What of a training's tensors counts latents, by the names that checkpoints use.

    A checkpoint holds whole tensors, so a training may continue in any number of processes.

    Attributes:
        shard: the latents of this process.
    """

    def __init__(
        self, sae: AbstractSAE, shard: LatentShard, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Name the tensors of a module with its optimizer; without one, of a fused step."""
        self.shard, self._sae, self._dims = shard, sae, dims_of(sae)
        self._fused, groups = optimizer is None, optimizer.param_groups if optimizer else []
        names = {id(parameter): name for name, parameter in sae.named_parameters()}
        self._order = [names[id(p)] for group in groups for p in group["params"]]

    @property
    def replicas(self) -> Replicas:
        """Which rows this process reads."""
        return self.shard.replicas

    def dim(self, name: str, tensor: Tensor) -> int | None:
        """The dimension of a named tensor that counts latents; None if none does."""
        kind, _, rest = name.partition(".")
        if self._fused:  # It keeps both matrices latent by latent.
            of = rest if kind == "ema" else kind
            return None if of in WHOLE or not tensor.ndim else 0
        if kind in STATE:
            return self._dims.get(rest)
        if kind != "optimizer":
            return 0  # since_fired
        return self._dims.get(self._order[int(rest.partition(".")[0])]) if tensor.ndim else None

    def parameter_of(self, moment: str) -> Tensor | None:
        """The parameter that a moment of the optimizer has that name for, if one does."""
        match = MOMENT.fullmatch(moment)
        if match is None or int(match[1]) >= len(self._order):
            return None
        return self._sae.get_parameter(self._order[int(match[1])])

    def expected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the whole ones' shapes, on the meta device."""
        out = {}
        for name, tensor in tensors.items():
            shape, dim = list(tensor.shape), self.dim(name, tensor)
            if dim is not None:
                shape[dim] = self.shard.d_sae
            out[name] = torch.empty(shape, dtype=tensor.dtype, device="meta")
        return out

    def own(self, tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """This process's part of whole tensors, on `device`."""
        dims = {name: self.dim(name, tensor) for name, tensor in tensors.items()}
        return {
            name: (tensor if (dim := dims[name]) is None else self.shard.of(tensor, dim)).to(device)
            for name, tensor in tensors.items()
        }

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """A context for the loss and its gradients, which all processes enter.

        What their latents' encoders say about the common bias is summed at the end, once: a process
        without an active latent has no such gradient, and must not be waited for. Then the
        gradients of all replicas are averaged.
        """
        sae = self._sae
        sae.own_bias = own = sae.input_bias.detach().clone().requires_grad_()
        try:
            yield
        finally:
            sae.own_bias = None
        part = torch.zeros_like(own) if own.grad is None else own.grad
        total, bias = self.shard.sum_all(part), sae.input_bias
        bias.grad = total if bias.grad is None else bias.grad + total
        if self.replicas.count > 1:
            self.replicas.average_all(_gradient(parameter) for parameter in sae.parameters())

    @torch.no_grad()
    def clip(self, limit: float | int) -> Tensor:
        """Scale the gradients to a global norm of at most `limit`; the norm before. By all."""
        own, common = _zero(self._sae), _zero(self._sae)
        for name, parameter in self._sae.named_parameters():
            if parameter.grad is not None:
                into = own if name in self._dims else common
                into += parameter.grad.float().square().sum()
        norm = (self.shard.sum_all(own) + common).sqrt()
        nn.utils.clip_grads_with_norm_(_graded(self._sae.parameters()), limit, norm)
        return norm


def _gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient; zeros if there was none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _zero(sae: AbstractSAE) -> Tensor:
    return torch.zeros((), device=sae.W_dec.device)


def _graded(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.grad is not None]

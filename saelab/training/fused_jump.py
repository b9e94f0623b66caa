"""Training a JumpReLU SAE by kernels alone: two CUDA graphs a step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from saelab.kernels.sizes import ceil_div, power_of_two
from saelab.kernels.triton_jump import LEAST_ROOM, JumpCodes
from saelab.kernels.triton_jump_step import JumpStep
from saelab.sae.base import LossContext
from saelab.sae.jumprelu import JumpReLU
from saelab.training.fused import FusedStep, record
from saelab.types import SparseCodes

DENSE_SHARE = 1 / 64
"""Of all entries; more of them than this (and than the least room) go by dense products."""
ROOMS = 3
"""Sizes that are kept ready."""


@dataclass
class Room:
    """Memory for a number of entries, and the second half of a step on it.

    Attributes:
        used: whether the kernels have run on it, so that the half can be recorded.
    """

    codes: JumpCodes
    used: bool = False
    graph: torch.cuda.CUDAGraph | None = None


class FusedJump(FusedStep):
    """`FusedStep` for JumpReLU, which also learns the thresholds by the penalty on L0.

    How many entries are above their thresholds, or in the window below, is read once a step, after
    the pre-activations; the rest of the step is a graph with room for as many. More than a 64th of
    all entries, as without a target at the start of a run, go by dense products and torch's own
    operations instead, which are slower and as exact.

    Attributes:
        n_entries: of the last step.
    """

    @override
    def _new_step(self) -> JumpStep:
        self._begin: torch.cuda.CUDAGraph | None = None
        self._rooms: dict[int, Room] = {}
        self._dense: Float[Tensor, "batch d_sae"] | None = None
        self.n_entries = 0
        self._jump = JumpStep(
            self.weights, self.rules, self.options.batch_size, self.options.launch
        )
        self._penalty_weight = 0.0
        return self._jump

    @override
    def prepare(self, context: LossContext) -> None:
        assert isinstance(self.sae, JumpReLU)
        self._penalty_weight = self.sae.penalty_weight(context)
        self._jump.penalty_weight.fill_(self._penalty_weight)

    @property
    @override
    def penalties(self) -> dict[str, tuple[float, Float[Tensor, ""]]]:
        return {"l0_penalty": (self._penalty_weight, self._jump.penalty)}

    @override
    def _advance(self) -> None:
        step = self._jump
        self._dense = None
        if not step.x.is_cuda:
            step.begin()
        else:
            if self._begin is None:
                self._begin = self._record_begin()
            self._begin.replay()
        self.n_entries = step.n_entries()
        if self.n_entries > max(LEAST_ROOM, DENSE_SHARE * step.pre_acts.numel()):
            self._dense = step.finish_dense()
            return
        room = self._room(self.n_entries)
        step.codes = room.codes
        if room.used and step.x.is_cuda:
            room.graph = room.graph or record(step.finish)
            room.graph.replay()
            return
        # The first step compiles what is not yet compiled, and cannot be recorded.
        step.finish()
        room.used = True

    def _record_begin(self) -> torch.cuda.CUDAGraph:
        counted = self.weights.step.clone()
        self._jump.begin()
        self.weights.step.copy_(counted)
        return record(self._jump.begin)

    def _room(self, n: int) -> Room:
        """The least that has room for n entries; a new one if that is none, or far too large."""
        size = min((s for s in self._rooms if n <= s <= 2 * n + LEAST_ROOM), default=None)
        if size is None:
            # Somewhat more than wanted, since the next batch may have more.
            step = max(LEAST_ROOM, power_of_two(n) // 8)
            size = ceil_div(n + n // 8, step) * step
            self._rooms[size] = Room(self._jump.jump_codes.with_room(max(size, LEAST_ROOM)))
        # The last in order is the last that was used.
        self._rooms[size] = self._rooms.pop(size)
        for old in list(self._rooms)[:-ROOMS]:
            del self._rooms[old]
        return self._rooms[size]

    @override
    def stages(self) -> dict[str, Callable[[], object]]:
        if self._dense is not None:
            return {}
        # They count again, with the thresholds that the last step moved.
        self._jump.codes = self._room(self.n_entries + self.n_entries // 16).codes
        self._jump.select()
        return super().stages()

    @property
    @override
    def codes(self) -> SparseCodes:
        d_sae = len(self.since_fired)
        if self._dense is not None:
            latents = torch.arange(d_sae, device=self._dense.device)
            return SparseCodes(self._dense, latents.expand_as(self._dense), d_sae)
        codes, n = self._jump.jump_codes, self.n_entries
        starts = codes.scan.starts[:-1]
        return SparseCodes(codes.values[:n], codes.indices[:n], d_sae, starts)

    @torch.no_grad()
    @override
    def write_back(self) -> None:
        super().write_back()
        assert isinstance(self.sae, JumpReLU)
        self.sae.threshold.copy_(self.weights.learned.value)

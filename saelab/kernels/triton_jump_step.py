"""A whole training step of JumpReLU, whose thresholds are learned and whose L0 is not given.

The step of `triton_train`, in two halves. Between them the number of entries is read, and the
second half is given room for them; where they are very many, it goes by dense products instead.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from saelab.kernels.jump_dense import dense_gradients
from saelab.kernels.pairs import LatentPairs, Slices, heavy_slices
from saelab.kernels.triton_jump import JumpCodes, JumpPairs
from saelab.kernels.triton_rules import Launch, Rules
from saelab.kernels.triton_train import Step
from saelab.kernels.triton_weights import Weights


class JumpStep(Step):
    """See `Step`; after `begin`, `codes` must have room for `n_entries` before `finish`.

    Attributes:
        penalty_weight: of the penalty in the loss, to be set between steps.
        penalty: of the last step, before its weight.
    """

    def __init__(self, weights: Weights, rules: Rules, batch: int, launch: Launch) -> None:
        super().__init__(weights, rules, batch, launch)
        self.penalty_weight, self.penalty = (weights.scale.new_zeros(()) for _ in range(2))
        self.to_thresholds = torch.zeros_like(weights.learned.value)
        self.further = (self.to_thresholds,)

    @property
    def jump_codes(self) -> JumpCodes:
        """The codes."""
        assert isinstance(self.codes, JumpCodes)
        return self.codes

    def n_entries(self) -> int:
        """How many entries `begin` found; waits for the device."""
        return int(self.jump_codes.scan.total)

    @override
    def begin(self, side: torch.cuda.Stream | None = None) -> None:
        super().begin(side)
        self._count()

    def _count(self) -> None:
        self.jump_codes.scan.count(self.pre_acts, self.weights.learned.value)

    @override
    def invert(self) -> tuple[JumpPairs, Slices]:
        pairs = self.jump_codes.invert(len(self.weights.scale))
        return pairs, heavy_slices(pairs, self.launch.slice)

    @override
    def _sum_rows(self, pairs: LatentPairs) -> Float[Tensor, " d_in"]:
        assert isinstance(pairs, JumpPairs)
        window = self.jump_codes.window_sums(pairs, self.weights.learned.value)
        self._slope_thresholds(window, pairs.offsets[-1].float())
        return self._sum_errors()

    def _slope_thresholds(self, window: Float[Tensor, "2 d_sae"], n_on: Float[Tensor, ""]) -> None:
        """The thresholds' gradient (arXiv 2407.14435, eqs. 11 and 12), from sums over the window.

        Args:
            window: of the gradients of the codes, and of ones.
            n_on: entries of the batch that are on.
        """
        rules = self.rules.jump
        assert rules is not None
        l0 = n_on / len(self.x)
        if rules.target is None:
            self.penalty.copy_(l0)
            slope = self.penalty_weight
        else:
            gap = l0 / rules.target - 1
            self.penalty.copy_(gap.square())
            slope = self.penalty_weight * 2 * gap / rules.target
        slopes, near = window
        toward = self.weights.learned.value * slopes + slope / len(self.x) * near
        torch.div(toward, -rules.width, out=self.to_thresholds)

    @override
    def _finish(self, columns: Float[Tensor, " d_in"]) -> None:
        super()._finish(columns)
        thresholds = self.weights.learned
        self.move(thresholds, self.to_thresholds, torch.zeros_like(self.to_thresholds), 1.0)
        thresholds.value.clamp_min_(0)

    def finish_dense(self) -> Float[Tensor, "batch d_sae"]:
        """The second half without room for the entries; the codes of all latents."""
        rules, codes = self.rules.jump, self.jump_codes
        assert rules is not None
        rows = (self.x, self.centred)
        done = dense_gradients(
            self.pre_acts, rows, self.weights, codes.residual,
            width=rules.width, factor=self._factor,
        )  # fmt: skip
        self._slope_thresholds(done.window, done.n_on)
        offsets = torch.zeros(len(done.fired) + 1, dtype=torch.int32, device=self.x.device)
        pairs = LatentPairs(torch.zeros_like(codes.indices, dtype=torch.int64), offsets)
        sums = self.sum_slices(pairs, heavy_slices(pairs, self.launch.slice))
        columns = self._sum_errors()
        if self.rules.clip_norm is not None:
            self.clip(sums, columns, done.extra)
        self.update(sums, done.extra)
        self.weights.since_fired.masked_fill_(done.fired, 0)
        self._finish(columns)
        return done.z

    @override
    def stages(self) -> dict[str, Callable[[], object]]:
        return super().stages() | {"select": lambda: (self._count(), self.select())}

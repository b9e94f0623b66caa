"""The proof of a direct path: a finite difference through the running model.

All that the blocks add to the residual stream is held at its unchanged value, so a change at the
site reaches the logits only along the direct path: the model's own projection, norms and
unembedding. Directions are chosen that do not change any norm's scale: for them the path is linear.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.lm.direct import DirectPaths, Stage
from saelab.lm.protocol import Edit, ModelInfo
from saelab.sites import Site, outputs_of

N_DIRECTIONS = 4
STEP = 0.05
"""Step size, relative to the changed value."""
HALF_PRECISION_STEP = 0.5
"""In half precision rounding is coarser, and the chosen directions allow long steps."""
N_TOKENS = 4
TOLERANCE = 0.01
"""Relative error of the logits; a gain of 26 mistaken for 25 gives 0.04."""
HALF_PRECISION_TOLERANCE = 0.2


@runtime_checkable
class HasDirectPaths(Protocol):
    """A model with linear maps between sites and logits, derived from its modules."""

    @property
    def info(self) -> ModelInfo:
        """Identity and shape of the model."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        ...

    @property
    def direct(self) -> DirectPaths:
        """The maps."""
        ...

    def hooks(self) -> list[str]:
        """The names of all sites."""
        ...


def direct_path_fault(lm: HasDirectPaths, hook: str) -> str | None:
    """A sentence's end if the finite difference contradicts `lm.direct` at `hook`, else None."""
    error = direct_path_error(lm, hook)
    if error <= direct_path_tolerance(lm):
        return None
    return f"a finite difference through the model contradicts its direct path by {error:.0%}"


def direct_path_tolerance(lm: HasDirectPaths) -> float:
    """Largest allowed difference from the claim in the model's dtype."""
    return HALF_PRECISION_TOLERANCE if is_half(lm) else TOLERANCE


def added_by(lm: HasDirectPaths) -> list[str]:
    """The hooks on the values that blocks add to the residual stream."""
    return [hook for hook in lm.hooks() if Site.of(hook).adds]


def is_half(lm: HasDirectPaths) -> bool:
    """Whether the model runs in 16-bit floats."""
    return lm.info.dtype in ("float16", "bfloat16")


@torch.no_grad()
def direct_path_error(lm: HasDirectPaths, hook: str) -> float:
    """|difference - claim| / |claim| over directions at `hook` and the whole vocabulary."""
    held = _Held(lm, hook)
    size = held.value.norm().clamp_min(1e-3) / len(held.value) ** 0.5
    noise = torch.randn(N_DIRECTIONS, len(held.value), generator=torch.Generator().manual_seed(0))
    directions = held.step * size * noise.to(held.value)
    moved = held.move(directions)
    directions = directions * moved.room()[:, None]
    still = _null_space(moved.scale_changes() * moved.room())
    directions = (still.to(directions) @ directions) / N_DIRECTIONS**0.5
    found = held.move(directions).slopes()
    claimed = lm.direct.logits(lm.direct.writes(hook, directions))
    return float((found - claimed).norm() / claimed.norm().clamp_min(1e-30))


def _null_space(rows: Float[Tensor, "k n"]) -> Float[Tensor, "m n"]:
    """An orthonormal basis of the vectors orthogonal to all rows."""
    rows = rows.double() / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return torch.linalg.svd(rows, full_matrices=True).Vh[len(rows) :]


class _Held:
    """The model on a few tokens, with everything held except one site and its direct path."""

    def __init__(self, lm: HasDirectPaths, hook: str) -> None:
        self.direct = lm.direct
        self.step = HALF_PRECISION_STEP if is_half(lm) else STEP
        # The skip connection bypasses hook_resid_mid; only attention's output passes there.
        site = Site.of(hook)
        self.hook = hook
        if site.layer is not None and not site.replaceable:
            self.hook = outputs_of(site.layer)[0].added
        own = Site.of(self.hook).output
        self.stage = lm.direct.stage(self.hook)
        normed = self.stage is not None and self.stage.scaled
        self.out = own.returned if own is not None and normed else None
        self.last = f"blocks.{lm.info.n_layers - 1}.hook_resid_post"
        added = [h for h in added_by(lm) if (Site.of(h).layer or 0) >= (site.layer or 0)]
        n = min(N_TOKENS, lm.info.n_ctx)
        self.tokens = torch.arange(1, n + 1)[None] * (lm.info.d_vocab // (n + 1))
        reads = [*added, self.hook, self.last, "unembed.hook_out"]
        reads += [self.out] if self.out else []
        self.logits, self.seen = lm.direct.one_pass(self.tokens, {}, reads)
        mine = {self.hook} if own is None else {self.hook, *own}
        self.fixed = {h: self.seen[h] for h in added if h in self.seen and h not in mine}
        self.value = self.seen[self.hook][0, -1]

    def move(self, directions: Float[Tensor, "n d_in"]) -> "_Moved":
        """The effect of adding `directions` and their negatives at the last token."""
        steps = torch.cat([directions, -directions])

        def step(x: Tensor) -> Tensor:
            return torch.cat([x[:, :-1], (x[:, -1] + steps.to(x))[:, None]], dim=1)

        edits: dict[str, Edit] = {h: lambda x, v=v: v.expand_as(x) for h, v in self.fixed.items()}
        reads = [self.last, *([self.out] if self.out else [])]
        tokens = self.tokens.expand(len(steps), -1)
        logits, seen = self.direct.one_pass(tokens, edits | {self.hook: step}, reads)
        passed = [(self.direct.last, self.last), (self.stage, self.out)]
        norms = [
            _Norm(stage, self.seen[at][0, -1], seen[at][:, -1])
            for stage, at in passed
            if stage is not None and at is not None
        ]
        return _Moved(logits[:, -1], norms, self.step, self.cap_slopes)

    @cached_property
    def cap_slopes(self) -> Float[Tensor, " d_vocab"]:
        """The logits' slope in the unembedding's output, relative to that at small output."""
        raw = self.seen["unembed.hook_out"]
        if not self.direct.capped or self.direct.slope is None:
            return torch.ones_like(raw[0, -1])
        step = self.step * raw.std()
        edits: dict[str, Edit] = {"unembed.hook_out": lambda _: torch.cat([raw + step, raw - step])}
        up, down = self.direct.one_pass(self.tokens.expand(2, -1), edits, [])[0][:, -1]
        return (up - down) / (2 * step) / self.direct.slope


@dataclass(frozen=True)
class _Norm:
    """A norm on the path, its input before the change, and its inputs for both signs of it."""

    stage: Stage
    before: Float[Tensor, " d_model"]
    now: Float[Tensor, "twice_n d_model"]

    @property
    def change(self) -> Float[Tensor, "n d_model"]:
        plus, minus = self.now.chunk(2)
        return (plus - minus) / 2


@dataclass(frozen=True)
class _Moved:
    """The effect of a change on the logits and on the norms of the path."""

    logits: Float[Tensor, "twice_n d_vocab"]
    norms: list[_Norm]
    step: float
    cap_slopes: Float[Tensor, " d_vocab"]

    def room(self) -> Float[Tensor, " n"]:
        """The factor by which each direction can grow until it is a full step at a norm's input."""
        shares = [n.change.norm(dim=1) / n.before.norm() for n in self.norms]
        return self.step / torch.stack(shares).amax(0).clamp_min(1e-12)

    def scale_changes(self) -> Float[Tensor, "k n"]:
        """The change of each norm's scale by each direction."""
        rows = [n.change @ n.stage.centre(n.before) for n in self.norms if n.stage.scaled]
        return torch.stack(rows) if rows else self.logits.new_zeros(0, len(self.logits) // 2)

    def slopes(self) -> Float[Tensor, "n d_vocab"]:
        """The logits' change at scale 1 and without a cap, centred over the vocabulary."""
        plus, minus = self.logits.chunk(2)
        slopes = (plus - minus) / 2 / self.cap_slopes
        for norm in self.norms:
            slopes = slopes * norm.stage.scale(norm.now.chunk(2)[0])
        return slopes - slopes.mean(-1, keepdim=True)

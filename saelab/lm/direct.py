"""The direct path: what a direction at a site writes to the residual stream and to the logits.

This module knows no architecture; it derives the path from the running model. In one pass, probe
vectors replace the outputs of attention and MLPs: this shows the norm or multiplier after them
(Gemma, OLMo 2, Granite). With probes as the last residual stream the pass shows the final norm,
with the gain it really applies (Gemma's is 1 + weight). `direct_check` proves the result.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab.lm.hooks import Hook
from saelab.lm.protocol import Edit
from saelab.sites import Site, outputs_of

SIZE = 64.0
"""Size of the probes' entries: a power of two, so exact in every dtype, and so large that a norm's
epsilon does not matter."""
TINY = 2.0**-12
"""Factor that makes SIZE so small that a norm's epsilon shows."""
SMALL = 2.0**-10
"""Replaces the unembedding's output: so small that a soft cap is linear there."""
CLOSE = 2e-2
"""Relative tolerance: a probe's outputs are equal, or differ by a factor."""


class _UnknownError(Exception):
    """A site's path to the residual stream is not linear at fixed scales."""


@dataclass(frozen=True)
class Stage:
    """A multiplier, or a norm at scale 1 without its bias: linear, and equal for all tokens.

    Attributes:
        centred: whether the norm subtracts the mean first.
        scaled: whether it is a norm: the model divides by the scale of its input.
        epsilon: the norm's epsilon, added to the mean square under the root.
    """

    gain: Float[Tensor, " d_model"]
    centred: bool
    scaled: bool
    epsilon: float = 0.0

    def __call__(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The output of the stage; norms at scale 1."""
        return self.centre(x) * self.gain.to(x)

    def centre(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """`x` without its mean if the norm subtracts it, else `x`."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def scale(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows 1"]:
        """The number that the model divides by."""
        if not self.scaled:
            return torch.ones_like(x[..., :1])
        return (self.centre(x).square().mean(-1, keepdim=True) + self.epsilon).sqrt()


def probes(d_model: int) -> Float[Tensor, "8 d_model"]:
    """A vector without mean or zeros, its negative, both doubled, one with a mean, a tiny one."""
    sign = torch.ones(d_model)
    sign[1::2] = -1
    if d_model % 2:
        sign[-3:] = torch.tensor([2.0, -1.0, -1.0])
    plus = SIZE * sign
    halves = [plus, 2 * plus, plus + SIZE, plus * TINY]
    return torch.stack([x for half in halves for x in (half, -half)])


def stage_of(sent: Float[Tensor, "8 d_model"], came: Float[Tensor, "8 d_out"]) -> Stage | None:
    """The stage that maps the probes `came` to `sent`; None if it is no norm or multiplier."""
    if sent.shape != came.shape or not came.isfinite().all():
        return None
    sent, came = sent.double(), came.double()
    plain, doubled, shifted, tiny = ((came[i] - came[i + 1]) / 2 for i in range(0, 8, 2))
    x, with_mean = sent[0], sent[4]
    if _alike(doubled, 2 * plain):
        stage = Stage(plain / x, centred=False, scaled=False)
        return stage if _alike(shifted, stage(with_mean)) else None
    if not _alike(doubled, plain):
        return None
    gain, share = plain / x * x.square().mean().sqrt(), float(tiny @ plain / (plain @ plain))
    epsilon = float((x * TINY).square().mean()) * max(share**-2 - 1, 0.0)
    for centred in (True, False):
        stage = Stage(gain, centred, scaled=True, epsilon=epsilon)
        if _alike(shifted, stage(with_mean) / stage.scale(with_mean)):
            return stage
    return None


def _put(sent: Float[Tensor, "batch d_model"]) -> Edit:
    return lambda x: sent.to(x)[:, None].expand_as(x)


def _alike(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= CLOSE * b.norm())


@runtime_checkable
class Probed(Protocol):
    """A running model, as far as its direct paths need it."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        ...

    @property
    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding."""
        ...

    @property
    def points(self) -> Mapping[str, object]:
        """Where each hook is; hooks of equal places see the same value."""
        ...

    def linear_at(self, hook: str) -> nn.Module | None:
        """The module of the hook's block whose input is the value there, if there is one."""
        ...

    def run(
        self, tokens: Int[Tensor, "batch pos"], hooks: Sequence[tuple[str, Hook]]
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """The logits of a whole pass with these hooks, which run in this order at one place."""
        ...


class DirectPaths:
    """The linear path from each site that writes to the residual stream to the logits."""

    def __init__(self, model: Probed) -> None:
        self._model = model
        self._points = model.points
        self._behind = self._probe_outputs()
        self.last, self.slope, self.capped = self._probe_end()

    def fault(self, hook: str) -> str | None:
        """Why the direct path of `hook` is unknown, as a sentence's end; None if it is known."""
        if Site.of(hook).kind is None:
            return "it reaches the residual stream only through a nonlinearity"
        if self.last is None or self.slope is None:
            return "what stands between the last residual stream and the logits is no plain norm"
        try:
            self.stage(hook)
            self._linear(hook)
        except _UnknownError as error:
            return str(error)
        return None

    def stage(self, hook: str) -> Stage | None:
        """The norm or multiplier between an attention or MLP site and the residual stream."""
        inside = Site.of(hook).output
        if inside is None or self._points.get(inside.added) == self._points[hook]:
            return None
        if inside.returned not in self._behind:
            return None
        stage = self._behind[inside.returned]
        if stage is None:
            raise _UnknownError(
                f"what stands between {inside.returned} and the stream is no plain norm"
            )
        return stage

    def writes(self, hook: str, directions: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_model"]:
        """What each direction writes to the residual stream; norms on the path at scale 1."""
        linear, stage = self._linear(hook), self.stage(hook)
        if linear is not None:
            x = directions.to(self._model.unembedding.dtype)
            directions = (linear(x) - linear(torch.zeros_like(x[:1]))).to(directions.dtype)
        return directions if stage is None else stage(directions)

    def logits(self, residual: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
        """What directions in the last residual stream add to the logits; norm at scale 1."""
        assert self.last is not None
        assert self.slope is not None
        W_U = self._model.unembedding
        effects = (self.last(residual).to(W_U.dtype) @ W_U).to(residual.dtype) * self.slope
        return effects - effects.mean(dim=-1, keepdim=True)

    def _linear(self, hook: str) -> nn.Module | None:
        """The module that maps a site's values to the output of its attention or MLP."""
        site, point = Site.of(hook), self._points[hook]
        inside = site.output
        if inside is None or site.layer is None or site.kind == "residual":
            return None
        if point in (self._points.get(inside.returned), self._points.get(inside.added)):
            # For an MLP of experts, hook_post is its output.
            return None
        if (linear := self._model.linear_at(hook)) is not None:
            return linear
        raise _UnknownError("no one module takes it to the residual stream")

    @torch.no_grad()
    def _probe_end(self) -> tuple[Stage | None, float | None, bool]:
        """The final norm, the logits' slope in the unembedding's output, and if a cap lowers it."""
        sent = probes(len(self._model.unembedding))
        edits = {f"blocks.{self._model.n_layers - 1}.hook_resid_post": _put(sent)}
        sizes = torch.full((len(sent), 1, 1), SMALL)
        sizes[1] = SIZE
        edits["unembed.hook_out"] = lambda x: sizes.to(x).expand_as(x)
        logits, seen = self.one_pass(torch.zeros(len(sent), 1).long(), edits, ["unembed.hook_in"])
        slopes = (logits.double() / sizes.to(logits))[:, 0]
        slope = float(slopes[0].mean())
        alike = _alike(slopes[0], torch.full_like(slopes[0], slope))
        came = seen.get("unembed.hook_in")
        last = None if came is None else stage_of(sent, came[:, 0].cpu())
        return last, slope if alike else None, not _alike(slopes[1], slopes[0])

    @torch.no_grad()
    def _probe_outputs(self) -> dict[str, Stage | None]:
        """The stage between each attention or MLP output and the stream, if there is any.

        One pass for each kind of probe: only the probes enter the stream.
        """
        sent = probes(len(self._model.unembedding))
        tokens = torch.zeros(len(sent), 1).long()
        found: dict[str, Stage | None] = {}
        layers = [outputs_of(layer) for layer in range(self._model.n_layers)]
        for part in (0, 1):
            edits: dict[str, Edit] = {}
            ends: dict[str, str] = {}
            for layer, outputs in enumerate(layers):
                probed, other = outputs[part], outputs[1 - part]
                points = [self._points.get(hook) for hook in probed]
                if None in points or points[0] == points[1]:
                    continue
                nothing = dict.fromkeys(
                    [f"blocks.{layer}.hook_resid_pre", other.added], torch.zeros_like
                )
                edits |= {h: e for h, e in nothing.items() if h in self._points}
                edits[probed.returned] = _put(sent)
                ends[probed.returned] = f"blocks.{layer}.hook_resid_post"
            if ends:
                _, seen = self.one_pass(tokens, edits, ends.values())
                found |= {h: stage_of(sent, seen[end][:, 0].cpu()) for h, end in ends.items()}
        return found

    def one_pass(
        self, tokens: Int[Tensor, "batch pos"], edits: Mapping[str, Edit], read: Iterable[str]
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], dict[str, Tensor]]:
        """The logits, and the values at the hooks in `read` that fire."""
        seen: dict[str, Tensor] = {}

        def reading(name: str) -> Hook:
            def hook_function(value: Tensor, **_: object) -> None:
                seen[name] = value.flatten(2)

            return hook_function

        def editing(edit: Edit) -> Hook:
            return lambda value, **_: edit(value.flatten(2)).view(value.shape)

        hooks = [(name, editing(edit)) for name, edit in edits.items()]
        hooks += [(name, reading(name)) for name in read if name in self._points]
        return self._model.run(tokens.to(self._model.unembedding.device), hooks), seen

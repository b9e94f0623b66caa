"""The inputs of a graph's nodes: computed in batches, the most influential latents first."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.analysis.circuits.backward_walk import stop, walk_back
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.readings import Reading, latent_reading
from saelab.console import Bar

CHUNK = {"cpu": 128, "cuda": 1024}
"""Most latents whose inputs are computed together; fewer if the walk would exceed WORKSPACE."""
WORKSPACE = {"cpu": 2**26, "cuda": 2**31}
"""Bytes of one walk's arrays: targets times (active latents, leaves, prompt length times width)."""
N_INPUTS = 4096
"""Number of latent inputs that a row keeps separately, the largest ones; the others go into
`rest`."""


@dataclass(frozen=True)
class LatentInfluence:
    """How much of the target latents explain, over the rows known so far.

    Attributes:
        total: each latent's share of |inputs|, of |inputs| of those, and so on.
        left_out: share of all this that belongs to latents without a row.
    """

    total: Float[Tensor, " latent"]
    left_out: float


@dataclass(frozen=True)
class _Inputs:
    """InputRows of a walk.

    A row keeps its N_INPUTS largest inputs from latents. Of the others it keeps the sum and the sum
    of magnitudes, so memory does not grow with the number of active latents.

    Attributes:
        latents: whose inputs they are, sources of less depth last; none for the target.
        spans: by SAE, its latents among these.
        others: sum and sum of magnitudes of the inputs that are not kept.
        whole: sum of the magnitudes of all inputs.
    """

    latents: Int[Tensor, " latent"]
    spans: dict[int, slice]
    source: Int[Tensor, "row input"]
    weight: Float[Tensor, "row input"]
    leaves: Float[Tensor, "row leaf"]
    others: Float[Tensor, "row 2"]
    whole: Float[Tensor, " row"]


class InputRows:
    """The direct inputs of the target and of the latents expanded so far."""

    def __init__(self, frozen: Frozen, reading: Reading) -> None:
        self._frozen = frozen
        self._at_once = _targets_at_once(frozen)
        self.latents = torch.zeros(0, dtype=torch.long, device=frozen.values.device)
        self._target = self._batch([reading], self.latents, {})
        self._batches: list[_Inputs] = []
        self._influence: LatentInfluence | None = None

    def expand(self, latents: Int[Tensor, " n"], bar: Bar | None = None) -> None:
        """Compute the inputs of more latents."""
        frozen = self._frozen
        # One walk serves latents of all SAEs, the deepest first.
        for mine in latents.sort(descending=True).values.split(self._at_once):
            numbers, counts = frozen.owner[mine].unique_consecutive(return_counts=True)
            spans, readings, start = {}, [], 0
            for number, n in zip(numbers.tolist(), counts.tolist(), strict=True):
                spans[number] = slice(start, start + n)
                entries = mine[spans[number]] - frozen.spans[number].start
                readings.append(latent_reading(frozen, number, entries))
                start += n
            self._batches.append(self._batch(readings, mine, spans))
            if bar is not None:
                bar.advance(len(mine))
        self.latents = torch.cat([self.latents, latents])
        self._influence = None

    def following(self, n: int, share: float = 1.0) -> Int[Tensor, " n"]:
        """At most n latents that are not expanded yet, with the largest influence on the target.

        None if those that are expanded have this share of the latents' influence.
        """
        found = self.influence()
        if found.left_out <= 1 - share:
            return self.latents[:0]
        left = found.total.clone()
        left[self.latents] = 0
        best = left.topk(min(n, len(left)))
        return best.indices[best.values > 0]

    def influence(self) -> LatentInfluence:
        """Each latent's influence over the expanded rows."""
        if self._influence is None:
            self._influence = self._latent_influence()
        return self._influence

    def edges(
        self, kept: Int[Tensor, " node"]
    ) -> tuple[Int[Tensor, " edge"], Int[Tensor, " edge"], Float[Tensor, " edge"]]:
        """All edges as source, end and weight, sorted by end, then by source.

        Nodes are numbered: leaves, `rest`, the latents in `kept` (sorted), the target.
        """
        n_leaves, device = self._frozen.n_leaves + 1, self.latents.device
        place = torch.full((len(self._frozen.values),), -1, device=device)
        place[kept.to(device)] = torch.arange(len(kept), device=device)
        parts = []
        for batch in (self._target, *self._batches):
            ends = place[batch.latents] if len(batch.latents) else place.new_tensor([len(kept)])
            at = place[batch.source]
            inside = (at >= 0) & (batch.weight != 0)
            rest = (batch.weight * (at < 0)).sum(1) + batch.others[:, 0]
            left = torch.cat([batch.leaves, rest[:, None]], dim=1)
            for values, where, number in (
                (left, left != 0, torch.arange(n_leaves, device=device).expand_as(left)),
                (batch.weight, inside, at + n_leaves),
            ):
                end = (ends + n_leaves)[:, None].expand_as(values)
                parts.append([x[where].cpu() for x in (number, end, values)])
        source, end, weight = (torch.cat(list(column)) for column in zip(*parts, strict=True))
        order = (end * (n_leaves + len(kept) + 1) + source).argsort()
        return source[order], end[order], weight[order]

    def _latent_influence(self) -> LatentInfluence:
        total = torch.zeros_like(self._frozen.values, dtype=torch.float64)
        unkept = 0.0

        def passed_on(batch: _Inputs, rows: slice, given: Float[Tensor, " row"]) -> float:
            share = given / batch.whole[rows].double().clamp_min(1e-300)
            amount = share[:, None] * batch.weight[rows].abs()
            total.index_add_(0, batch.source[rows].flatten(), amount.flatten())
            return float(share @ batch.others[rows, 1].double())

        unkept += passed_on(self._target, slice(0, 1), total.new_ones(1))
        # Sources have less depth, so one sweep from the deepest SAE down is enough.
        for number in reversed(range(len(self._frozen.actives))):
            for batch in self._batches:
                if (rows := batch.spans.get(number)) is not None:
                    unkept += passed_on(batch, rows, total[batch.latents[rows]])
        without_row = total.clone()
        without_row[self.latents] = 0
        left = float(without_row.sum()) + unkept
        return LatentInfluence(total, left / max(1e-300, float(total.sum()) + unkept))

    def _batch(
        self, readings: list[Reading], latents: Int[Tensor, " n"], spans: dict[int, slice]
    ) -> _Inputs:
        found = walk_back(self._frozen, readings, stop)
        given = found.gradient.mul_(self._frozen.values)
        n_inputs = min(N_INPUTS, given.shape[1])
        source = given.abs().topk(n_inputs, dim=1, sorted=False).indices
        weight = given.gather(1, source)
        given.scatter_(1, source, 0.0)
        others = torch.stack([given.sum(1), given.abs_().sum(1)], dim=1)
        whole = weight.abs().sum(1) + others[:, 1] + found.leaves.abs().sum(1)
        return _Inputs(latents, spans, source.int(), weight, found.leaves, others, whole)


def graph_bytes(frozen: Frozen, max_nodes: int) -> int:
    """Bytes that the rows of this number of latents take, a walk included; in float32."""
    row = 12 * min(N_INPUTS, len(frozen.values)) + 4 * frozen.n_leaves
    return WORKSPACE[frozen.values.device.type] + max_nodes * row


def _targets_at_once(frozen: Frozen) -> int:
    """How many targets' walks fit into the workspace together."""
    kind = frozen.values.device.type
    widest = max([frozen.record.embed.shape[-1], *(a.error.shape[1] for a in frozen.actives)])
    # Gradients, their magnitudes and what sorts them; leaves; the stream and what joins it.
    numbers = 4 * len(frozen.values) + frozen.n_leaves + 6 * frozen.n_pos * widest
    return max(1, min(CHUNK[kind], WORKSPACE[kind] // (frozen.values.element_size() * numbers)))

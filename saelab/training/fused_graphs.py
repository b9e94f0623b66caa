"""A fused step on the device: one CUDA graph, or two with a count read between them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.kernels.rules import StepValues
from saelab.kernels.sizes import ceil_div, power_of_two
from saelab.kernels.triton.codes.jump import LEAST_ROOM, JumpCodes
from saelab.kernels.triton.codes.ragged import Ragged
from saelab.kernels.triton.codes.rows import RowCodes
from saelab.kernels.triton.codes.shared import SharedCodes
from saelab.kernels.triton.step.aux_k import AuxStep
from saelab.kernels.triton.step.jump_dense import finish_dense
from saelab.kernels.triton.step.stages import stages
from saelab.kernels.triton.step.step import Step
from saelab.training.fused_aux import AuxRoom
from saelab.training.recorded import Recorded, record
from saelab.types import SparseCodes

T = TypeVar("T")
DENSE_SHARE = 1 / 64
"""If a larger share of all entries is active, the step uses dense products."""
ROOMS = 3
"""Number of sizes kept ready."""


class OneGraph:
    """The whole step, AuxK included, as one graph, which never waits for the device.

    Attributes:
        step: the step that is run.
        aux: AuxK's memory.
    """

    def __init__(self, step: Step) -> None:
        self.step, self.aux = step, AuxRoom(step)
        self._graphs = _Graphs()
        self._lows: list[int] = []

    def tell(self, values: StepValues) -> None:
        """Set what the next steps need beside the batch."""
        if values.prefixes:
            assert isinstance(self.step.codes, Ragged | SharedCodes)
            shard, lows = self.step.exchange.shard, [0, *values.prefixes[:-1]]
            lows = lows if shard is None else [shard.count(low) for low in lows]
            if lows != self._lows:
                self._lows, told = lows, torch.tensor(lows)
                there = self.step.codes.lows
                # Only a copy from pinned memory does not wait for the steps launched so far.
                there.copy_(told.pin_memory() if there.is_cuda else told, non_blocking=True)
        if values.k:
            assert isinstance(self.step.codes, RowCodes)
            assert self.step.codes.left is not None
            self.step.codes.left.fill_(values.k)
        columns = self.step.codes.columns if isinstance(self.step.codes, Ragged) else None
        if columns is not None and columns.on != values.by_column:
            columns.on, self._graphs = values.by_column, _Graphs()

    def run_step(self, number: int, after: Callable[[], T]) -> T:
        """Run step `number` of the run on the rows in `step.x`, and `after` at its end."""
        aux = self.aux.look(number)
        step = self.step

        def run(side: torch.cuda.Stream | None = None) -> T:
            step.run(side, aux)
            return after()

        if step.x.is_cuda and self._graphs.ready(aux):
            done = self._graphs.replay(aux, lambda: record(run, step.exchange))
        else:
            done = run()
        self.aux.ask(number + 1)
        return done

    def codes(self) -> SparseCodes:
        """The codes of the last step; valid until the next step."""
        codes = self.step.codes
        groups = self.step.rule.groups
        flat = isinstance(codes, Ragged | SharedCodes)
        offsets = codes.starts[:-1:groups] if flat else None
        return SparseCodes(*codes.kept(), len(self.step.weights.scale), offsets)

    def penalties(self) -> dict[str, tuple[float, Float[Tensor, ""]]]:
        """Weight and value of each further loss term in the last step, by name."""
        return self.aux.penalties()

    def stages(self) -> dict[str, Callable[[], object]]:
        """The parts of a step, to be timed one by one. Running them spoils the SAE's weights."""
        return stages(self.step) | self.aux.stages()


class _Graphs:
    """Graphs of the same work: without AuxK, and with AuxK of one size."""

    def __init__(self) -> None:
        self._done: list[AuxStep | None] = []
        self._plain: Recorded[Any] | None = None
        self._with: tuple[AuxStep, Recorded[Any]] | None = None

    def ready(self, aux: AuxStep | None) -> bool:
        """Whether work with this AuxK can be recorded; if not, it is to be done now.

        The first step compiles kernels, so it is done without a graph. No step is done only to
        compile them, and undone: a copy of all weights and moments may not fit beside them.
        """
        known = any(aux is done for done in self._done)
        if not known:
            self._done = [None, aux] if None in self._done else [aux]
        return known

    def replay(self, aux: AuxStep | None, make: Callable[[], Recorded[T]]) -> T:
        """Replay the graph for this AuxK; `make` it first if there is none."""
        if aux is None:
            self._plain = self._plain or make()
            return self._plain.replay()
        if self._with is None or self._with[0] is not aux:
            self._with = None
            self._with = aux, make()
        return self._with[1].replay()


@dataclass
class Room:
    """Memory for a number of entries, and the second half of a step that uses it."""

    codes: JumpCodes
    graphs: _Graphs


class TwoGraphs:
    """The step in two halves, each a graph, for latents with thresholds of their own.

    After the pre-activations, the host reads how many entries are above their thresholds or in the
    window below. The rest of the step is a graph with room for that many. If they are more than a
    64th of all entries, as at the start of a run without a target, dense products and torch's own
    operations replace the graph; they are slower and equally exact.

    Attributes:
        step: the step that is run.
        aux: AuxK's memory.
        n_entries: entries of the last step.
        rooms: the rooms by size, in the order of their last use.
        dense: the dense codes of the last step, if it used dense products.
    """

    def __init__(self, step: Step) -> None:
        assert isinstance(step.codes, JumpCodes)
        assert step.thresholds is not None
        self.step, self.aux, self.n_entries = step, AuxRoom(step), 0
        self.rooms: dict[int, Room] = {}
        self.dense: Float[Tensor, "batch d_sae"] | None = None
        self._codes, self._thresholds = step.codes, step.thresholds
        self._begin: Recorded[None] | None = None
        self._penalty_weight = 0.0

    def tell(self, values: StepValues) -> None:
        """See `OneGraph.tell`."""
        self._penalty_weight = values.penalty_weight
        self._thresholds.penalty_weight.fill_(values.penalty_weight)

    def run_step(self, number: int, after: Callable[[], T]) -> T:
        """See `OneGraph.run_step`; `after` is not recorded: the entries are not always as many."""
        self._run(number)
        return after()

    def _run(self, number: int) -> None:
        step, aux = self.step, self.aux.look(number)
        self.dense = None
        if not step.x.is_cuda:
            self._first_half()
        else:
            if self._begin is None:
                self._begin = self._record_begin()
            self._begin.replay()
        total, exchange = self._codes.scan.total, step.exchange
        self.n_entries = int(total)
        # Several processes must take the same way.
        n = self.n_entries if exchange.shard is None else exchange.most(total)
        if n > max(
            LEAST_ROOM, DENSE_SHARE * len(step.x) * exchange.latents(step.pre_acts.shape[1])
        ):
            self.dense = finish_dense(step, aux)
            return
        room = self.room(n)
        step.codes = room.codes
        if step.x.is_cuda and room.graphs.ready(aux):
            room.graphs.replay(aux, lambda: record(lambda side: step.finish(side, aux), exchange))
        else:
            step.finish(aux=aux)

    def codes(self) -> SparseCodes:
        """See `OneGraph.codes`."""
        d_sae = len(self.step.weights.scale)
        if self.dense is not None:
            latents = torch.arange(d_sae, device=self.dense.device)
            return SparseCodes(self.dense, latents.expand_as(self.dense), d_sae)
        values, indices = (kept[: self.n_entries] for kept in self.step.codes.kept())
        return SparseCodes(values, indices, d_sae, self._codes.scan.starts[:-1])

    def penalties(self) -> dict[str, tuple[float, Float[Tensor, ""]]]:
        """See `OneGraph.penalties`."""
        penalty = self._penalty_weight, self._thresholds.penalty
        return {"l0_penalty": penalty, **self.aux.penalties()}

    def stages(self) -> dict[str, Callable[[], object]]:
        """See `OneGraph.stages`; empty if the last step used dense products."""
        if self.dense is not None:
            return {}
        # The entries are counted again, since the last step moved the thresholds.
        self.step.codes = self.room(self.n_entries + self.n_entries // 16).codes
        self.step.select()

        def select() -> None:
            self._count()
            self.step.select()

        return stages(self.step) | {"select": select} | self.aux.stages()

    def room(self, n: int) -> Room:
        """The smallest room for n entries; a new one if none fits or the fit is far too large."""
        size = min((s for s in self.rooms if n <= s <= 2 * n + LEAST_ROOM), default=None)
        if size is None:
            # Somewhat more than needed, since the next batch may have more.
            step = max(LEAST_ROOM, power_of_two(n) // 8)
            size = ceil_div(n + n // 8, step) * step
            codes = self._codes.with_room(max(size, LEAST_ROOM))
            self.rooms[size] = Room(codes, _Graphs())
        # The last in order is the last used.
        self.rooms[size] = self.rooms.pop(size)
        for old in list(self.rooms)[:-ROOMS]:
            del self.rooms[old]
        return self.rooms[size]

    def _first_half(self, side: torch.cuda.Stream | None = None) -> None:
        self.step.begin(side)
        self._count()

    def _count(self) -> None:
        self._codes.scan.count(self.step.pre_acts, self.step.weights.learned.value)

    def _record_begin(self) -> Recorded[None]:
        counted = self.step.weights.step.clone()
        self._first_half()
        self.step.weights.step.copy_(counted)
        return record(self._first_half, self.step.exchange)


Graphs = OneGraph | TwoGraphs

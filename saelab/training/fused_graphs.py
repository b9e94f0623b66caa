"""How a fused step is given to the device: as one CUDA graph, or as two with a look between."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.kernels.jump_dense import finish_dense
from saelab.kernels.rules import StepValues
from saelab.kernels.sizes import ceil_div, power_of_two
from saelab.kernels.triton_aux import AuxRules, AuxStep
from saelab.kernels.triton_jump import LEAST_ROOM, JumpCodes
from saelab.kernels.triton_ragged import Ragged
from saelab.kernels.triton_train import Step
from saelab.types import SparseCodes

WARM_UP = 3
LOOK_EVERY = 16
"""Steps between looks at how many latents may be dead, each of which waits for the device."""
LEAST_CAPACITY = 128
DENSE_SHARE = 1 / 64
"""Of all entries; more of them than this (and than the least room) go by dense products."""
ROOMS = 3
"""Sizes that are kept ready."""


class AuxRoom:
    """AuxK with room for every latent that can be dead before the next look at how many are.

    Attributes:
        capacity: latents that there is room for.
    """

    def __init__(self, step: Step) -> None:
        self._step, self.capacity = step, 0
        self._aux: AuxStep | None = None

    def at(self, number: int) -> AuxStep | None:
        """AuxK for step `number` of the run; None where nothing can be dead."""
        rules = self._step.rules
        if rules.aux is None:
            return None
        if number % LOOK_EVERY == 0:
            self.capacity = self.needed(rules.aux)
        if not self.capacity:
            return None
        # Only one size is in use at a time, and sizes seldom change back.
        if self._aux is None or len(self._aux.to_dec) != self.capacity:
            weights, signed = self._step.weights, rules.sae.signed
            self._aux = AuxStep(weights, rules.aux, self.capacity, signed=signed)
        return self._aux

    def needed(self, rules: AuxRules) -> int:
        """Room for every latent that can be dead before the next look, in steps of about an eighth.

        Depends on nothing but the state at this step, so a resumed run makes the same choice.
        """
        since_fired = self._step.weights.since_fired
        soon = rules.dead_after - LOOK_EVERY * len(self._step.x)
        n = int((since_fired >= soon).sum())
        if n == 0:
            return 0
        step = max(LEAST_CAPACITY, power_of_two(n) // 8)
        return min(len(since_fired), ceil_div(n, step) * step)

    def penalties(self) -> dict[str, tuple[float, Float[Tensor, ""]]]:
        """AuxK's weight and size in the last step, if there was room for any latent."""
        rules = self._step.rules.aux
        if not self.capacity or rules is None:
            return {}
        none = self._step.mse_sum.new_zeros(())
        return {"aux_k": (rules.coefficient, none if self._aux is None else self._aux.loss)}


class Graphs(Protocol):
    """The way a `Step` is run again and again.

    Attributes:
        step: what is run.
        aux: what it revives.
    """

    step: Step
    aux: AuxRoom

    def tell(self, values: StepValues) -> None:
        """What the next steps must know beside the batch."""
        ...

    def advance(self, number: int) -> None:
        """Step `number` of the run on what `step.x` holds."""
        ...

    def codes(self) -> SparseCodes:
        """The codes of the last step, until the next one."""
        ...

    def penalties(self) -> dict[str, tuple[float, Float[Tensor, ""]]]:
        """Weights and sizes of what else was minimised in the last step, by name."""
        ...

    def stages(self) -> dict[str, Callable[[], object]]:
        """The parts of a step, to be timed one by one; the SAE is of no use afterwards."""
        ...


class OneGraph:
    """The whole step, AuxK included, is one graph, which never waits for the device.

    Every 16 steps the number of latents that may be dead is looked at, which decides for how many
    AuxK has room.
    """

    def __init__(self, step: Step) -> None:
        self.step, self.aux = step, AuxRoom(step)
        self._graphs: dict[AuxStep | None, torch.cuda.CUDAGraph] = {}

    def tell(self, values: StepValues) -> None:
        """See `Graphs.tell`."""
        if values.prefixes:
            assert isinstance(self.step.codes, Ragged)
            self.step.codes.lows.copy_(torch.tensor([0, *values.prefixes[:-1]]))

    def advance(self, number: int) -> None:
        """See `Graphs.advance`."""
        step, aux = self.step, self.aux.at(number)
        if not step.x.is_cuda:
            step.run(aux=aux)
            return
        if aux not in self._graphs:
            self._graphs = {a: graph for a, graph in self._graphs.items() if a is None}
            self._graphs[aux] = self._capture(aux)
        self._graphs[aux].replay()

    def codes(self) -> SparseCodes:
        """See `Graphs.codes`."""
        codes = self.step.codes
        groups = self.step.rule.groups
        offsets = codes.starts[:-1:groups] if isinstance(codes, Ragged) else None
        return SparseCodes(*codes.kept(), len(self.step.weights.scale), offsets)

    def penalties(self) -> dict[str, tuple[float, Float[Tensor, ""]]]:
        """See `Graphs.penalties`."""
        return self.aux.penalties()

    def stages(self) -> dict[str, Callable[[], object]]:
        """See `Graphs.stages`."""
        return self.step.stages()

    def _capture(self, aux: AuxStep | None) -> torch.cuda.CUDAGraph:
        """Record the step. Kernels are compiled by running it, and what that changed is undone."""
        state = self.step.weights.state()
        saved = [tensor.clone() for tensor in state.values()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.step.run(aux=aux)
        torch.cuda.synchronize()
        for tensor, before in zip(state.values(), saved, strict=True):
            tensor.copy_(before)
        del saved
        return _record(lambda side: self.step.run(side, aux))


@dataclass
class Room:
    """Memory for a number of entries, and the second half of a step on it.

    Attributes:
        graphs: with each AuxK that the kernels have run on it with; None until they were recorded.
    """

    codes: JumpCodes
    graphs: dict[AuxStep | None, torch.cuda.CUDAGraph | None] = field(default_factory=dict)


class TwoGraphs:
    """For latents with thresholds of their own: the step in halves, each a graph.

    How many entries are above their thresholds, or in the window below, is read once a step, after
    the pre-activations; the rest of the step is a graph with room for as many. More than a 64th of
    all entries, as without a target at the start of a run, go by dense products and torch's own
    operations instead, which are slower and as exact.

    Attributes:
        n_entries: of the last step.
        rooms: by their sizes, in the order of their use.
        dense: all latents' codes of the last step, if it went by dense products.
    """

    def __init__(self, step: Step) -> None:
        assert isinstance(step.codes, JumpCodes)
        assert step.thresholds is not None
        self.step, self.aux, self.n_entries = step, AuxRoom(step), 0
        self.rooms: dict[int, Room] = {}
        self.dense: Float[Tensor, "batch d_sae"] | None = None
        self._codes, self._thresholds = step.codes, step.thresholds
        self._begin: torch.cuda.CUDAGraph | None = None
        self._penalty_weight = 0.0

    def tell(self, values: StepValues) -> None:
        """See `Graphs.tell`."""
        self._penalty_weight = values.penalty_weight
        self._thresholds.penalty_weight.fill_(values.penalty_weight)

    def advance(self, number: int) -> None:
        """See `Graphs.advance`."""
        step, aux = self.step, self.aux.at(number)
        self.dense = None
        if not step.x.is_cuda:
            self._first_half()
        else:
            if self._begin is None:
                self._begin = self._record_begin()
            self._begin.replay()
        self.n_entries = int(self._codes.scan.total)
        if self.n_entries > max(LEAST_ROOM, DENSE_SHARE * step.pre_acts.numel()):
            self.dense = finish_dense(step, aux)
            return
        room = self.room(self.n_entries)
        step.codes = room.codes
        if aux in room.graphs and step.x.is_cuda:
            graph = room.graphs[aux] or _record(lambda side: step.finish(side, aux))
            room.graphs[aux] = graph
            graph.replay()
            return
        # The first step compiles what is not yet compiled, and cannot be recorded.
        step.finish(aux=aux)
        room.graphs = {a: graph for a, graph in room.graphs.items() if a is None} | {aux: None}

    def codes(self) -> SparseCodes:
        """See `Graphs.codes`."""
        d_sae = len(self.step.weights.scale)
        if self.dense is not None:
            latents = torch.arange(d_sae, device=self.dense.device)
            return SparseCodes(self.dense, latents.expand_as(self.dense), d_sae)
        values, indices = (kept[: self.n_entries] for kept in self.step.codes.kept())
        return SparseCodes(values, indices, d_sae, self._codes.scan.starts[:-1])

    def penalties(self) -> dict[str, tuple[float, Float[Tensor, ""]]]:
        """See `Graphs.penalties`."""
        l0_penalty = (self._penalty_weight, self._thresholds.penalty)
        return {"l0_penalty": l0_penalty, **self.aux.penalties()}

    def stages(self) -> dict[str, Callable[[], object]]:
        """See `Graphs.stages`; none where the last step went by dense products."""
        if self.dense is not None:
            return {}
        # They count again, with the thresholds that the last step moved.
        self.step.codes = self.room(self.n_entries + self.n_entries // 16).codes
        self.step.select()

        def select() -> None:
            self._count()
            self.step.select()

        return self.step.stages() | {"select": select}

    def room(self, n: int) -> Room:
        """The least that has room for n entries; a new one if that is none, or far too large."""
        size = min((s for s in self.rooms if n <= s <= 2 * n + LEAST_ROOM), default=None)
        if size is None:
            # Somewhat more than wanted, since the next batch may have more.
            step = max(LEAST_ROOM, power_of_two(n) // 8)
            size = ceil_div(n + n // 8, step) * step
            self.rooms[size] = Room(self._codes.with_room(max(size, LEAST_ROOM)))
        # The last in order is the last that was used.
        self.rooms[size] = self.rooms.pop(size)
        for old in list(self.rooms)[:-ROOMS]:
            del self.rooms[old]
        return self.rooms[size]

    def _first_half(self, side: torch.cuda.Stream | None = None) -> None:
        self.step.begin(side)
        self._count()

    def _count(self) -> None:
        self._codes.scan.count(self.step.pre_acts, self.step.weights.learned.value)

    def _record_begin(self) -> torch.cuda.CUDAGraph:
        counted = self.step.weights.step.clone()
        self._first_half()
        self.step.weights.step.copy_(counted)
        return _record(self._first_half)


def _record(run: Callable[[torch.cuda.Stream], object]) -> torch.cuda.CUDAGraph:
    """What `run` gives to the device, whose kernels must be compiled; it gets a second stream."""
    # What little the second stream does should not queue behind a full device.
    side = torch.cuda.Stream(priority=-1)
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on allocating and copying: the store is read by one.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run(side)
    return graph

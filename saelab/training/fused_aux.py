"""AuxK in a fused step: memory for all latents that may be dead."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div, power_of_two
from saelab.kernels.torch.zipf import LOOK_EVERY
from saelab.kernels.triton.step.aux_k import AuxRules, AuxStep
from saelab.kernels.triton.step.step import Step

LEAST_CAPACITY = 128
SHRINK_EVERY, REFIT_EVERY = 256, 4096
"""Steps after which room far too large is cut, and any room to what is needed; multiples of
`LOOK_EVERY`."""


class AuxRoom:
    """The working memory of AuxK.

    Attributes:
        capacity: number of latents that fit; 0 if no latent can be dead.
    """

    def __init__(self, step: Step) -> None:
        self.step, self.capacity = step, 0
        self._made: tuple[int, AuxStep] | None = None
        cuda = step.mse_sum.is_cuda
        self._told = torch.zeros((), dtype=torch.int64, pin_memory=cuda)
        self._there = torch.cuda.Event() if cuda else None
        self._asked: int | None = None

    def ask(self, number: int) -> None:
        """Begin to count what `look` will read, before the step of this number, which is the next.

        `look` itself would wait for all that is launched, once for each of many SAEs. Whatever else
        changes the state in between must `fit` it.
        """
        step, rules = self.step, self.step.rules.aux
        if rules is None or number % self.look_every(rules):
            return
        if step.weights.usage is None and step.exchange.shard is None:
            self._told.copy_(self._soon_dead(rules), non_blocking=True)
            if self._there is not None:
                self._there.record()
            self._asked = number

    def _answer(self, number: int) -> int | None:
        """How many latents may be dead before the count after this step's; None if not asked."""
        asked, self._asked = self._asked, None
        if asked != number:
            return None
        if self._there is not None:
            self._there.synchronize()
        return int(self._told)

    def look(self, number: int) -> AuxStep | None:
        """The working memory for step `number`, if it needs any; counts as `look_every` says."""
        rules = self.step.rules.aux
        if rules is None:
            return None
        if number % LOOK_EVERY == 0 and self.step.weights.usage is not None:
            self.step.weights.usage.mark_()
        if number % self.look_every(rules) == 0:
            self.capacity = self._fitting(rules, number)
        if not self.capacity:
            return None
        # Only one size is used at a time, and sizes rarely change back.
        if self._made is None or self._made[0] != self.capacity:
            signed = self.step.rule.signed
            exchange = self.step.exchange
            made = AuxStep(self.step.weights, rules, self.capacity, exchange, signed=signed)
            self._made = self.capacity, made
        return self._made[1]

    def penalties(self) -> dict[str, tuple[float, Float[Tensor, ""]]]:
        """AuxK's weight and value in the last step, if AuxK ran."""
        rules = self.step.rules.aux
        if not self.capacity or rules is None:
            return {}
        loss = self.step.mse_sum.new_zeros(()) if self._made is None else self._made[1].loss
        return {"aux_k": (rules.coefficient, loss)}

    def stages(self) -> dict[str, Callable[[], object]]:
        """AuxK's parts in the last step, if it ran; each can be repeated alone."""
        if not self.capacity or self._made is None:
            return {}
        step, aux = self.step, self._made[1]
        given = step.codes.kept(), step.revivable(), step.pre_acts
        codes = aux.choose(*given)[0]
        return {
            "AuxK's codes": lambda: aux.choose(*given),
            "AuxK's gradients": lambda: aux.run(codes, step.missed(), given[1]),
        }

    def fit(self, number: int) -> None:
        """Make room after another number of processes had done the steps before this one.

        After as many as now, there is enough, and nothing changes.
        """
        self._asked = None
        if (rules := self.step.rules.aux) is not None:
            every = self.look_every(rules)
            needed = self.room_for_dead(rules, every - number % every)
            self.capacity = max(self.capacity, needed)

    def look_every(self, rules: AuxRules) -> int:
        """Steps between two counts: a power of two up to 16, and few if latents die soon.

        The room is also for what may die before the next count: after a quarter of the silence at
        most, or it would soon be for all latents.
        """
        steps = rules.dead_after // (4 * self.step.n_rows)
        return min(LOOK_EVERY, 1 << max(0, steps.bit_length() - 1))

    def _fitting(self, rules: AuxRules, number: int) -> int:
        """The capacity from step `number` on.

        Another one takes a step without a graph, and a new graph. Latents that die one by one, in
        each of many SAEs, would want one at every count. So room grows by a half at least, and is
        only now and then given back.
        """
        n = self._answer(number)
        needed, before = self.room_for_dead(rules, n=n), self.capacity
        if needed > before:
            most, half = self.step.exchange.latents(len(self.step.weights.scale)), before // 2
            grown = ceil_div(before + half, LEAST_CAPACITY) * LEAST_CAPACITY
            return max(needed, min(most, grown) if before else 0)
        if number % SHRINK_EVERY:
            return before
        tight = self.room_for_dead(rules, parts=32, n=n)
        if number % REFIT_EVERY == 0 or not tight:
            return tight
        return before if before <= tight + max(tight // 4, LEAST_CAPACITY) else needed

    def room_for_dead(
        self, rules: AuxRules, steps: int | None = None, parts: int = 8, n: int | None = None
    ) -> int:
        """Room for all latents that can be dead or under-used before the next count: `n`, if known.

        It is a multiple of one of `parts` of the power of two above. It depends only on the state
        at this step, so a resumed run chooses the same.
        """
        exchange = self.step.exchange
        n = exchange.most(self._soon_dead(rules, steps)) if n is None else n
        if n == 0:
            return 0
        step = max(LEAST_CAPACITY, power_of_two(n) // parts)
        most = exchange.latents(len(self.step.weights.since_fired))
        return min(most, ceil_div(n, step) * step)

    def _soon_dead(self, rules: AuxRules, steps: int | None = None) -> Int[Tensor, ""]:
        """How many latents can be dead or under-used after so many steps, until the next count."""
        steps = self.look_every(rules) if steps is None else steps
        soon = rules.dead_after - steps * self.step.n_rows
        dead, usage = self.step.weights.since_fired >= soon, self.step.weights.usage
        return (dead if usage is None else dead | usage.underused).sum()

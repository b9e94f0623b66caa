"""Which of several processes this is, as torchrun says."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from saelab.config import UsageError
from saelab.lock import Lock

LOCKS = "writer-*.lock"
"""Names of a store's locks, one per process, in state/."""


@dataclass(frozen=True)
class Ranks:
    """Which of `world` processes this is.

    Attributes:
        launch: identifies the launch that the processes belong to.
    """

    rank: int = 0
    world: int = 1
    launch: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Ranks":
        """The rank from RANK and WORLD_SIZE, as torchrun sets them; without them, the only one.

        Raises:
            UsageError: one of the two is missing, or not `0 <= RANK < WORLD_SIZE`.
        """
        given = [environment.get(name) for name in ("RANK", "WORLD_SIZE")]
        if given == [None, None]:
            return cls()
        try:
            rank, world = (int(value or "") for value in given)
        except ValueError:
            rank, world = -1, 0
        if not 0 <= rank < world:
            raise UsageError(
                f"RANK is {given[0]} and WORLD_SIZE is {given[1]}; for several processes set both, "
                "RANK from 0 to WORLD_SIZE - 1, for one process neither."
            )
        names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
        return cls(rank, world, " ".join(environment.get(name, "") for name in names).strip())

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all and writes their common files."""
        return self.rank == 0

    def owns(self, unit: int) -> bool:
        """Whether this process writes the unit of a store: those with number `rank` mod `world`."""
        return unit % self.world == self.rank

    def lock(self, root: Path) -> Lock:
        """This process's lock on the store at `root`.

        Raises:
            UsageError: a process of another launch writes the store.
        """
        path = root / "state" / LOCKS.replace("*", str(self.rank))
        return Lock(path, root, beside=LOCKS, world=self.world, launch=self.launch)

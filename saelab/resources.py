"""The free memory and disk of this machine, and the announced needs of a verb."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saelab.config import UsageError
from saelab.console import duration, in_bytes, say

if TYPE_CHECKING:
    import torch

CGROUPS = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
SHARE = 0.25
"""Largest share of the free memory for a batch whose size was not given."""
MOST = {"cpu": 2**30, "cuda": 2**34}
"""Most bytes of such a batch: larger ones are no faster."""


def free_memory(root: Path = CGROUPS, meminfo: Path = MEMINFO) -> int:
    """Bytes of main memory that this process can still use.

    The machine's available memory, or less if a control group (a container's limit) allows less;
    file caches counted by such a group do not reduce it.
    """
    machine = _available(meminfo)
    limits = [left for group in _groups(root) if (left := _left(group)) is not None]
    return min([machine, *limits])


def free_bytes(root: Path) -> int:
    """Free bytes on the disk where `root` is or would be."""
    place = next(parent for parent in (root, *root.absolute().parents) if parent.exists())
    return shutil.disk_usage(place).free


def free_on(device: "torch.device") -> int:
    """Free bytes in the memory of `device`: main memory, or the GPU's."""
    if device.type != "cuda":
        return free_memory()
    import torch

    own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + own


def batch_budget(device: "torch.device") -> int:
    """Most bytes of a batch whose size is chosen here."""
    return min(int(SHARE * free_on(device)), MOST.get(device.type, MOST["cpu"]))


@dataclass(frozen=True)
class Plan:
    """The needs of a piece of work.

    Attributes:
        title: what is about to run.
        device: whose memory `memory` is.
        memory: bytes at the peak, beside what is loaded already.
        remedy: what to do where that is too much.
        seconds: how long; None: it is not known.
        disk: bytes to be written, at `path`.
        beside: bytes of main memory at the peak, where `device` is a GPU.
    """

    title: str
    device: "torch.device"
    memory: int
    remedy: str
    seconds: float | None = None
    disk: int = 0
    path: Path | None = None
    beside: int = 0

    @property
    def fits(self) -> bool:
        """Whether it can fit in the memory that is free now."""
        return self.memory <= free_on(self.device) and self.beside <= free_memory()

    def announce(self) -> None:
        """Print it on standard error, if there is room for it.

        Raises:
            UsageError: it cannot fit in what is free now.
        """
        kind = "GPU memory" if self.device.type == "cuda" else "memory"
        needs = [(kind, self.memory, free_on(self.device))]
        if self.beside:
            needs.append(("memory", self.beside, free_memory()))
        for kind, needed, free in needs:
            if needed > free:
                raise UsageError(
                    f"{self.title} takes about {in_bytes(needed)} of {kind}, and "
                    f"{in_bytes(free)} is free; {self.remedy}."
                )
        parts = [
            f"{in_bytes(needed)} of {kind} ({in_bytes(free)} free)" for kind, needed, free in needs
        ]
        if self.path is not None:
            room = free_bytes(self.path)
            if self.disk > room:
                raise UsageError(
                    f"{self.title} writes about {in_bytes(self.disk)} at {self.path}, where "
                    f"{in_bytes(room)} is free; {self.remedy}."
                )
            parts.append(f"{in_bytes(self.disk)} of disk ({in_bytes(room)} free)")
        if self.seconds is not None:
            parts.append(f"about {duration(self.seconds)}")
        say(f"{self.title} takes {', '.join(parts)}.")


def _available(meminfo: Path) -> int:
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _groups(root: Path) -> list[Path]:
    """The control groups that this process is in, from the innermost; of both versions."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return [root]
    found = [root, root / "memory"]
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers in ("", "memory"):
            base = root / controllers / name.lstrip("/")
            found += [g for g in (base, *base.parents) if root in (g, *g.parents)]
    return list(dict.fromkeys(found))


def _left(group: Path) -> int | None:
    """Bytes below a group's limit; None where it has none."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, now = (int((group / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        return max(0, most - now + int(stat.get(cache, 0)))
    return None

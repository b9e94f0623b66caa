"""A baseline, and cases drawn evenly over its files."""

import contextlib
import gc
import importlib
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.baseline import in_child, make_baseline
from fuzz.readers import begun_from, load, page, readers_of, train
from fuzz.workers import Case, Verdict, growths, run_cases


@dataclass
class Campaign:
    """Runs and a store to be damaged, and what reading them whole takes.

    Attributes:
        peaks: by its readers, the peak of memory in MB when they read an undamaged file.
    """

    base: Path
    work: Path
    jobs: int
    peaks: dict[tuple[str, ...], float] = field(default_factory=dict)

    @classmethod
    def begin(cls, directory: Path, jobs: int = 2) -> "Campaign":
        """Make the baseline below `directory`, import all that reads it, and read it whole."""
        campaign = cls(directory / "base" / "here", directory / "work", jobs)
        campaign.work.mkdir(parents=True)
        begun_from.append(campaign.base / "store")
        assert in_child(lambda: _prepare(campaign.base, campaign.work)) == 0
        _warm(campaign.base, campaign.work)
        whole = [Case(file, None) for file in campaign.alike().values()]
        for verdict in run_cases(campaign.base, campaign.work, whole, jobs):
            refused = [found for found in verdict.findings if found.outcome != "read"]
            assert not refused, f"{verdict.case.file} is whole, yet {refused}"
            assert not verdict.ended, f"{verdict.case.file} is whole, yet {verdict.ended}"
            campaign.peaks[_readers(verdict.case.file)] = verdict.peak_mb
        return campaign

    @property
    def files(self) -> list[Path]:
        """All files that are damaged; of two runs alike one is left alone."""
        found = [p.relative_to(self.base) for p in sorted(self.base.rglob("*")) if p.is_file()]
        return [p for p in found if p.parts[:2] != ("runs", "other")]

    def alike(self) -> dict[tuple[str, ...], Path]:
        """One file of all that have the same readers, by these."""
        return {_readers(file): file for file in reversed(self.files)}

    def peak(self, file: Path) -> float:
        """What reading the undamaged file takes, in MB."""
        return self.peaks[_readers(file)]

    def cases(self, n: int, seed: int = 0, readers: int = 3) -> Iterator[Verdict]:
        """The verdicts on `n` cases, each file as often as any other.

        Each is read by so many of the file's readers, drawn.
        """
        draw = random.Random(seed)
        files = self.files
        drawn = []
        for i in range(n):
            file = files[i % len(files)]
            names = sorted(readers_of(file)[1])
            some = frozenset(draw.sample(names, min(readers, len(names))))
            drawn.append(Case(file, seed + i // len(files), some))
        yield from growths(run_cases(self.base, self.work, drawn, self.jobs), self.peak)

    def one(self, file: Path, seed: int) -> Verdict:
        """The verdict on one case, read by all."""
        cases = run_cases(self.base, self.work, [Case(file, seed)], 1)
        return next(growths(cases, self.peak))


def _readers(file: Path) -> tuple[str, ...]:
    return tuple(readers_of(file)[1])


def _prepare(base: Path, work: Path) -> None:
    """Make the baseline, read of it what starts threads of torch's, and list what that imported."""
    make_baseline(base)
    shutil.copytree(base / "half", work / "half")
    load(base / "runs" / "other")
    train(work / "half")
    (work / "modules").write_text(" ".join(sys.modules))


def _warm(base: Path, work: Path) -> None:
    """Import what every reader needs, once for all cases, and draw every page once."""
    import apps.driving

    assert apps.driving  # without it every page would look through all packages
    for name in (work / "modules").read_text().split():
        # Some of torch's can be imported from within alone.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    for view in ("runs", "latent", "latents", "known", "health", "training", "steering", "compare"):
        page(view)(base / "runs" / "other")
    page("circuit", graph="b-to-her")(base / "runs" / "other")
    # What is there now never goes: collecting it in a child would copy every page of memory.
    gc.collect()
    gc.freeze()

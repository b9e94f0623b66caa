"""Speeds of the store beside what the machine can do at best, taken in turns in one process."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from saelab.activations.arrays import write_arrays
from saelab.activations.batches import ShuffledBatches
from saelab.activations.corpus import Corpus
from saelab.activations.format import Dtype, Manifest
from saelab.activations.forward import model_input
from saelab.activations.harvest import HarvestOptions, plan, record
from saelab.activations.store import ActivationStore
from saelab.lm.protocol import ActivationSource

CHUNK = 2**22
SITE = "x"


@dataclass(frozen=True)
class Comparison:
    """One speed beside its limit.

    Attributes:
        ours: the store's speed, `unit` a second; the best of all rounds, as is `limit`.
        goal: what `ratio` should reach.
    """

    name: str
    ours: float
    limit: float
    unit: str
    goal: float

    @property
    def ratio(self) -> float:
        """`ours / limit`."""
        return self.ours / self.limit


def compare_writing(
    directory: Path, *, rows: int, d_in: int, dtype: Dtype, rounds: int
) -> Comparison:
    """Writing a store against writing and fsyncing the same number of bytes, file by file."""
    x = torch.randn(rows, d_in, generator=torch.Generator().manual_seed(0))
    x = x.to({"float32": torch.float32, "float16": torch.float16}.get(dtype, torch.bfloat16))
    store = directory / "written"

    def ours() -> None:
        shutil.rmtree(store, ignore_errors=True)
        write_arrays(store, {SITE: x}, dtype=dtype, rows_per_unit=2**16)

    def raw() -> None:
        sizes = [path.stat().st_size for path in _files(store)]
        data = memoryview(x.view(torch.uint8).numpy().data.cast("B"))
        for size in sizes:
            with (directory / "raw").open("wb", buffering=0) as file:
                written = 0
                while written < min(size, len(data)):
                    written += file.write(data[written : min(size, len(data))])
                os.fsync(file.fileno())

    times = _in_turns([ours, raw], rounds)
    size = x.nbytes / 1e9
    return Comparison("write, durably", size / times[0], size / times[1], "GB", 0.85)


def compare_reading(
    path: Path, *, batch_size: int, rounds: int, cold: bool, device: torch.device
) -> Comparison:
    """Shuffled float32 batches, checksums on, against reading the same files from end to end."""
    files = _files(path)
    size = sum(file.stat().st_size for file in files)

    def ours() -> None:
        _forget(files, cold=cold)
        store = ActivationStore(path)
        batches = ShuffledBatches(store, SITE, batch_size, device=device)
        for _ in range(store.n_rows // batch_size):
            next(batches)
        _finish(device)

    def raw() -> None:
        _forget(files, cold=cold)
        buffer = bytearray(CHUNK)
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    times = _in_turns([ours, raw], rounds)
    name = f"read shuffled, {'from disk' if cold else 'from memory'}"
    return Comparison(name, size / 1e9 / times[0], size / 1e9 / times[1], "GB", 0.8)


def compare_harvest(
    lm: ActivationSource,
    hooks: Sequence[str],
    corpus: Corpus,
    directory: Path,
    *,
    options: HarvestOptions,
    rounds: int,
) -> Comparison:
    """A harvest against the same forward passes up to the last hook, whose results are dropped."""
    manifest = plan(lm, hooks, corpus, options)

    def ours() -> None:
        shutil.rmtree(directory / "harvest", ignore_errors=True)
        record(lm, corpus, manifest, out=directory / "harvest", options=options)

    def plain() -> None:
        for tokens in _batches(corpus, manifest, options.batch_size):
            lm.capture(tokens, hooks)
        _finish(lm.device)

    times = _in_turns([ours, plain], rounds)
    tokens = manifest.n_contexts * manifest.context_length
    return Comparison("harvest", tokens / times[0], tokens / times[1], "tokens", 0.9)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _batches(corpus: Corpus, manifest: Manifest, batch_size: int) -> list[torch.Tensor]:
    contexts = corpus.read(0, manifest.n_contexts)
    return list(model_input(contexts.tokens).split(batch_size))


def _in_turns(actions: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    """The shortest time of each action: other work on the machine only ever adds to it."""
    best = [float("inf")] * len(actions)
    for _ in range(rounds):
        for i, action in enumerate(actions):
            start = time.perf_counter()
            action()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def _files(store: Path) -> list[Path]:
    return sorted((store / "hooks" / SITE).iterdir())


def _forget(files: Sequence[Path], *, cold: bool) -> None:
    """Drop the files from the page cache, where the system lets a process do so."""
    if not cold or not hasattr(os, "posix_fadvise"):
        return
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

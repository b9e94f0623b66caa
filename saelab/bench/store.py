"""Speeds of the store against the machine's limit, measured in turns in one process."""

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
from saelab.activations.format import Dtype
from saelab.activations.forward import model_input
from saelab.activations.harvest import HarvestOptions, plan, record
from saelab.activations.store import ActivationStore
from saelab.kernels.cuda import finish
from saelab.kernels.sizes import ceil_div
from saelab.lm.protocol import ActivationSource

CHUNK = 2**22
SITE = "x"


@dataclass(frozen=True)
class StoreSpeed:
    """A speed and its limit.

    Attributes:
        ours: the store's speed in `unit` per second; the best of all rounds, like `limit`.
        goal: the `ratio` to reach.
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
) -> StoreSpeed:
    """Compare writing a store with writing and fsyncing the same number of bytes, file by file."""
    x = torch.randn(rows, d_in, generator=torch.Generator().manual_seed(0))
    x = x.to({"float32": torch.float32, "float16": torch.float16}.get(dtype, torch.bfloat16))
    store = directory / "written"

    def ours() -> float:
        shutil.rmtree(store, ignore_errors=True)
        return _seconds(lambda: write_arrays(store, {SITE: x}, dtype=dtype, rows_per_unit=2**16))

    def plain() -> float:
        return plain_writing(_files(store), directory / "raw")

    times = _in_turns([ours, plain], rounds)
    size = x.nbytes / 1e9
    return StoreSpeed("write, durably", size / times[0], size / times[1], "GB", 0.85)


def plain_writing(files: Sequence[Path], raw: Path) -> float:
    """Seconds of writing and fsyncing bytes of these files' sizes to `raw`, file by file."""
    sizes = [file.stat().st_size for file in files]
    data = memoryview(os.urandom(CHUNK) * ceil_div(max(sizes), CHUNK))

    def write() -> None:
        for size in sizes:
            with raw.open("wb", buffering=0) as file:
                written = 0
                while written < size:
                    written += file.write(data[written:size])
                os.fsync(file.fileno())

    try:
        return _seconds(write)
    finally:
        raw.unlink(missing_ok=True)


def compare_reading(
    path: Path, *, batch_size: int, rounds: int, cold: bool, device: torch.device
) -> StoreSpeed:
    """Compare serving shuffled float32 batches, with checksums, with reading the files in order.

    Opening the store, which checks every file's header once (about 4 ms a file), is not counted.
    """
    files = _files(path)
    size = sum(file.stat().st_size for file in files)

    def ours() -> float:
        store = ActivationStore(path)
        batches = ShuffledBatches(store, SITE, batch_size, device=device)
        _forget(files, cold=cold)

        def epoch() -> None:
            for _ in range(store.n_rows // batch_size):
                next(batches)
            finish(device)

        taken = _seconds(epoch)
        # Wait for the read-ahead, so that the next reader runs alone.
        batches.load_state_dict(batches.state_dict())
        return taken

    def end_to_end() -> None:
        buffer = bytearray(CHUNK)
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def raw() -> float:
        _forget(files, cold=cold)
        return _seconds(end_to_end)

    times = _in_turns([ours, raw], rounds)
    name = f"read shuffled, {'from disk' if cold else 'from memory'}"
    return StoreSpeed(name, size / 1e9 / times[0], size / 1e9 / times[1], "GB", 0.8)


def compare_harvest(
    lm: ActivationSource,
    hooks: Sequence[str],
    corpus: Corpus,
    directory: Path,
    *,
    options: HarvestOptions,
    rounds: int,
) -> StoreSpeed:
    """Compare a harvest with the same forward passes, up to the last hook, without storing."""
    manifest = plan(lm, hooks, corpus, options)
    out = directory / "harvest"
    # The tokens are on the device first; copying them would make the passes wait for each other.
    tokens = model_input(corpus.read(0, manifest.n_contexts).tokens).to(lm.device)
    batches = tokens.split(options.batch_size)

    def ours() -> float:
        shutil.rmtree(out, ignore_errors=True)
        return _seconds(lambda: record(lm, corpus, manifest, out=out, options=options))

    def plain() -> None:
        for batch in batches:
            lm.capture(batch, hooks)
        finish(lm.device)

    times = _in_turns([ours, lambda: _seconds(plain)], rounds)
    return StoreSpeed(
        "harvest", tokens.numel() / times[0], tokens.numel() / times[1], "tokens", 0.9
    )


def _in_turns(actions: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """The shortest time of each action: other work on the machine can only add time."""
    best = [float("inf")] * len(actions)
    for _ in range(rounds):
        best = [min(least, action()) for least, action in zip(best, actions, strict=True)]
    return best


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _files(store: Path) -> list[Path]:
    return sorted((store / "hooks" / SITE).iterdir())


def _forget(files: Sequence[Path], *, cold: bool) -> None:
    """Drop the files from the page cache, if the system allows it."""
    if not cold or not hasattr(os, "posix_fadvise"):
        return
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

"""The streaming pass: text through the model and the encoder once, codes onto disk."""

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float, Integer
from numpy import ndarray
from torch import Tensor

from saelab.activations.corpus import Contexts, Corpus
from saelab.activations.format import JsonObject
from saelab.analysis.features.codes import (
    SHARD,
    ContextBlock,
    Events,
    Piece,
    RecordedCodes,
    write_shard,
)
from saelab.analysis.features.near_misses import NearMisses, codes_and_near_misses
from saelab.analysis.features.options import FeatureOptions
from saelab.config import UsageError
from saelab.console import progress
from saelab.files import temporary_name
from saelab.formats.json_file import read_sealed_json, write_sealed_json
from saelab.host.host import Host
from saelab.host.text import TextBatch, corpus_of, stream
from saelab.lock import check_held
from saelab.sae.base import AbstractSAE
from saelab.sae.checks import check_rows
from saelab.sae.decoder import device_of
from saelab.sae.in_blocks import codes_of
from saelab.training.domain import norms
from saelab.training.run import Run
from saelab.types import SparseCodes

DIRECTORY = "features.partial"
CHOSEN_DIRECTORY = "chosen_features.partial"
ROWS_AT_ONCE = 2**14
"""Rows in one call for chosen latents; the encoder itself limits how many numbers are there."""
NUMBERS_AT_ONCE = {"cpu": 2**24, "cuda": 2**26}
"""Pre-activations in one call to the encoder; memory holds about six times as many."""
DECIDES_CODES = ("n_tokens", "batch_size", "near_miss_ranks", "checkpoint_every")
"""The options that the pass depends on; all others only select from its results."""


def record_codes(
    run: Run, host: Host, options: FeatureOptions, latents: Sequence[int] = ()
) -> RecordedCodes:
    """The run's codes on its training text; continues where an interrupted pass stopped.

    With `latents`, those of these latents alone, numbered from 0, without near misses.

    Raises:
        UsageError: there is an unfinished pass with other arguments, or the text is missing.
    """
    corpus = corpus_of(run, host.lm, "train")
    directory = run.path / _directory(latents)
    # By default the device decides, and a pass continues as it began, maybe on another one.
    begun = _batch_size_of(directory) if options.batch_size is None else None
    at_once = begun or options.contexts_at_once(host.lm.device, corpus.context_length)
    options = replace(options, batch_size=at_once)
    _claim(directory, run, options, latents)
    done = RecordedCodes(directory)
    rest = Rest(corpus, done.n_contexts)
    with (
        progress("Features", options.n_tokens, "tokens", done.n_rows) as bar,
        ShardWriter(directory, host.sae, options, len(done.shards), tuple(latents)) as writer,
    ):
        left = options.n_tokens - done.n_rows
        # A pass killed at its end has read whole batches, so more than was asked for.
        batches = stream(host, rest, n_tokens=left, batch_size=at_once)
        for batch in batches if left > 0 else ():
            writer.add(batch, rest.first)
            bar.advance(len(batch.x))
        writer.commit()
    return RecordedCodes(directory)


def forget_codes(run: Run, latents: Sequence[int] = ()) -> None:
    """Remove what the pass wrote."""
    # Renamed first, so that a part of it is not taken for a pass to continue.
    directory = run.path / _directory(latents)
    unwanted = temporary_name(directory)
    directory.rename(unwanted)
    shutil.rmtree(unwanted)


def _directory(latents: Sequence[int]) -> str:
    return CHOSEN_DIRECTORY if latents else DIRECTORY


def _batch_size_of(directory: Path) -> int | None:
    """Contexts per forward pass of the unfinished pass, if there is one."""
    path = directory / "task.json"
    return read_sealed_json(path).get("batch_size") if path.is_file() else None


def _claim(directory: Path, run: Run, options: FeatureOptions, latents: Sequence[int]) -> None:
    """Start the pass, or refuse to continue another one."""
    chosen = asdict(options)
    task: dict[str, Any] = {name: chosen[name] for name in DECIDES_CODES} | {
        "sae_sha256": run.weights_sha256
    }
    if latents:
        task["latents"] = list(latents)
    path = directory / "task.json"
    if not path.is_file():
        # What is there belongs to an unknown pass.
        shutil.rmtree(directory, ignore_errors=True)
        write_sealed_json(path, task)
        return
    there = read_sealed_json(path)
    shards = sorted(found.name for found in directory.glob("codes_*.h5"))
    if shards != [SHARD.format(i) for i in range(len(shards))]:
        raise UsageError(f"{directory} lacks a shard; delete it to start again.")
    differing = [name for name, value in task.items() if there.get(name) != value]
    if differing:
        name = differing[0]
        raise UsageError(
            f"{directory} holds an unfinished pass with {name}={there.get(name)}, now it is "
            f"{task[name]}; use the former, or delete the directory to start again."
        )


@dataclass
class ShardWriter:
    """Collects codes, and writes a shard when there are enough; a context manager.

    Codes stay on the SAE's device until then. A thread sorts and writes a shard while the next one
    is read. Its error is raised by the next `commit`, or at the end.
    """

    directory: Path
    sae: AbstractSAE
    options: FeatureOptions
    n_shards: int
    latents: tuple[int, ...] = ()
    pieces: list[Piece] = field(default_factory=list)
    text: list[ContextBlock] = field(default_factory=list)
    n_rows: int = 0
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="codes")
    )
    _running: Future[None] | None = None

    def add(self, batch: TextBatch, first: int) -> None:
        """Encode a batch; `first` is the number of contexts before it."""
        context, position = batch.mask.cpu().numpy().nonzero()
        place = (context + batch.first + first) * batch.tokens.shape[1] + position
        size = ROWS_AT_ONCE if self.latents else encoded_at_once(self.sae)
        if len(batch.x):
            check_rows(batch.x, self.sae.d_in)
        for i in range(0, len(batch.x), size):
            x = batch.x[i : i + size]
            if self.latents:
                codes = codes_of(self.sae, x, torch.tensor(self.latents, device=x.device))
                near = None
            else:
                codes, near = codes_and_near_misses(self.sae, x, self.options.near_miss_ranks)
            self.pieces.append(piece_of(place[i : i + size], codes, near, norms(x)))
        self.text.append(ContextBlock(batch.contexts.tokens, batch.contexts.document))
        self.n_rows += len(batch.x)
        if self.n_rows >= self.options.checkpoint_every:
            self.commit()

    def commit(self) -> None:
        """Write the collected codes."""
        if self.pieces:
            check_held(self.directory.parent)
            path = self.directory / SHARD.format(self.n_shards)
            self._wait()
            m = len(self.latents) or self.sae.d_sae
            self._running = self._thread.submit(write_shard, path, self.pieces, self.text, m)
            self.n_shards, self.n_rows = self.n_shards + 1, 0
            self.pieces, self.text = [], []

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self._wait()


def piece_of(
    place: Integer[ndarray, " row"],
    codes: SparseCodes,
    near: NearMisses | None,
    norm: Float[Tensor, " row"],
) -> Piece:
    """Codes, near misses and norms of some rows, where they are."""
    # Found once: each search waits for a GPU.
    active = codes.active.flatten().nonzero().squeeze(1)
    fired = Events(
        codes.rows().flatten()[active].int(),
        codes.indices.flatten()[active].int(),
        codes.values.flatten()[active].float(),
    )
    if near is None:
        return Piece(place, fired, None, norm.float())
    missed = Events(
        near.row.int(), near.latent.int(), near.pre_activation.float(), near.closeness.float()
    )
    return Piece(place, fired, missed, norm.float())


def encoded_at_once(sae: AbstractSAE) -> int:
    """The number of rows that are encoded together."""
    kind = device_of(sae).type
    return max(1, NUMBERS_AT_ONCE.get(kind, NUMBERS_AT_ONCE["cpu"]) // sae.d_sae)


class Rest:
    """A corpus without its first contexts."""

    def __init__(self, corpus: Corpus, first: int) -> None:
        self.corpus = corpus
        self.first = first

    @property
    def facts(self) -> JsonObject:
        """What identifies the text."""
        return self.corpus.facts

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the ground-truth labels."""
        return self.corpus.label_names

    @property
    def label_descriptions(self) -> Mapping[str, str]:
        """What each label means."""
        return self.corpus.label_descriptions

    @property
    def label_hierarchies(self) -> Mapping[str, Sequence[str]]:
        """General labels as unions of special ones."""
        return self.corpus.label_hierarchies

    @property
    def context_length(self) -> int:
        """Positions per context."""
        return self.corpus.context_length

    @property
    def endless(self) -> bool:
        """Whether the corpus is endless."""
        return self.corpus.endless

    def available(self, n: int) -> int:
        """How many of the first `n` remaining contexts exist."""
        return self.corpus.available(n + self.first) - self.first

    def read(self, start: int, stop: int) -> Contexts:
        """Contexts, counted from the first remaining one."""
        return self.corpus.read(start + self.first, stop + self.first)

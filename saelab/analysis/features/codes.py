"""The sparse codes of a text on disk, in shards, by row and by latent.

The streaming pass writes one shard every few ten thousand tokens. A shard is whole or absent, so
shards are also the pass's checkpoints. A firing takes 12 bytes: a row's latents in one dataset, a
latent's rows and values in two others.

    corpus/tokens, document     the shard's contexts
    row/place                   uint32 [rows]       context * length + position
    row/norm                    float32 [rows]      ||x|| of what the SAE reads
    row/start, latent           int64 [rows + 1], uint32: each row's latents
    firing/start, row, value    int64 [F + 1], uint32, float32: each latent's rows in the shard
    near/start, row, value, closeness               the same for near misses; value: pre-activation
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float32, Int, Int32, Integer, UInt32
from numpy import ndarray
from torch import Tensor

from saelab.analysis.features.firings import (
    Firings,
    TextShape,
    by_group,
    owners,
    ragged,
    spread,
    starts,
)
from saelab.config import UsageError
from saelab.formats.hdf5_file import Hdf5Arrays, read_hdf5, write_hdf5

SHARD = "codes_{:06d}.h5"
MOST_PLACES = 2**32
LATENTS_AT_ONCE = 2**12
"""Rare latents are many to a million firings, and each costs time of its own."""
ROWS, NEAR = "firing", "near"
NEEDED = {
    *("corpus/tokens", "corpus/document", "row/place", "row/start", "row/latent"),
    *("firing/start", "firing/row", "firing/value"),
}
"""The datasets of every shard."""


@dataclass(frozen=True)
class Events:
    """Entries of a few rows (firings or near misses), row after row, on the SAE's device.

    Attributes:
        row: row of each entry, counted from the first of these rows.
        closeness: closeness of near misses; None for firings.
    """

    row: Int32[Tensor, " event"]
    latent: Int32[Tensor, " event"]
    value: Float32[Tensor, " event"]
    closeness: Float32[Tensor, " event"] | None = None


@dataclass(frozen=True)
class Piece:
    """Some rows: their places, their entries, and the norms of the activations."""

    place: Int[ndarray, " row"]
    fired: Events
    near: Events | None
    norm: Float32[Tensor, " row"] | None = None


@dataclass(frozen=True)
class ContextBlock:
    """The text of a batch."""

    tokens: Integer[ndarray, "context pos"]
    document: Integer[ndarray, " context"]


def write_shard(
    path: Path, pieces: Sequence[Piece], text: Sequence[ContextBlock], d_sae: int
) -> None:
    """Write the codes of some consecutive rows, and their contexts.

    What is on a GPU is sorted there, and comes in a few large copies.
    """
    place = np.concatenate([piece.place for piece in pieces])
    if len(place) and int(place[-1]) >= MOST_PLACES:
        raise UsageError(
            f"The text reaches position {int(place[-1])}, more than the {MOST_PLACES} that can be "
            "numbered; lower --n-tokens."
        )
    sizes = [len(piece.place) for piece in pieces]
    first = starts(np.array(sizes))[:-1]
    fired = _joined([piece.fired for piece in pieces], first)
    arrays = {
        "corpus/tokens": np.concatenate([block.tokens for block in text]).astype(np.int32),
        "corpus/document": np.concatenate([block.document for block in text]).astype(np.int64),
        "row/place": place.astype(np.uint32),
        "row/start": _starts(fired.row, len(place)),
        "row/latent": _array(fired.latent).view(np.uint32),
        **_by_latent(ROWS, fired, d_sae),
    }
    norms = [piece.norm for piece in pieces if piece.norm is not None]
    if len(norms) == len(pieces):
        arrays["row/norm"] = _array(torch.cat(norms))
    near = [piece.near for piece in pieces if piece.near is not None]
    if near:
        arrays |= _by_latent(NEAR, _joined(near, first), d_sae)
    write_hdf5(path, arrays, {"d_sae": d_sae})


def _joined(parts: list[Events], first: Int[ndarray, " piece"]) -> Events:
    closeness = [part.closeness for part in parts if part.closeness is not None]
    return Events(
        torch.cat([part.row + int(start) for part, start in zip(parts, first, strict=True)]),
        torch.cat([part.latent for part in parts]),
        torch.cat([part.value for part in parts]),
        torch.cat(closeness) if closeness else None,
    )


def _by_latent(group: str, events: Events, d_sae: int) -> dict[str, ndarray]:
    if events.latent.device.type == "cpu":
        order = torch.from_numpy(by_group(events.latent.numpy(), d_sae))
    else:
        order = events.latent.argsort(stable=True)
    arrays = {
        f"{group}/start": _starts(events.latent, d_sae),
        f"{group}/row": _array(events.row[order]).view(np.uint32),
        f"{group}/value": _array(events.value[order]),
    }
    if events.closeness is not None:
        arrays[f"{group}/closeness"] = _array(events.closeness[order])
    return arrays


def _starts(group: Int32[Tensor, " event"], n_groups: int) -> Int[ndarray, " group_plus_1"]:
    return starts(_array(torch.bincount(group, minlength=n_groups)))


def _array(tensor: Tensor) -> ndarray:
    return tensor.cpu().numpy()


class RecordedCodes:
    """All shards of a directory as one."""

    def __init__(self, directory: Path) -> None:
        paths = sorted(directory.glob("codes_*.h5"))
        try:
            self.shards = [read_hdf5(path, "file of codes") for path in paths]
            self.d_sae = _width(self.shards)
        except UsageError as error:
            raise UsageError(
                f"{directory} holds a damaged checkpoint ({error}); delete it and run `saelab "
                "features` again."
            ) from error
        self._lock = Lock()
        self.first_row = starts(np.array([len(s["row/place"]) for s in self.shards], dtype=int))

    @property
    def n_rows(self) -> int:
        """Number of tokens read."""
        return int(self.first_row[-1])

    @property
    def n_contexts(self) -> int:
        """Number of contexts read."""
        return sum(len(shard["corpus/tokens"]) for shard in self.shards)

    @cached_property
    def tokens(self) -> Integer[ndarray, "context pos"]:
        """The text."""
        return np.concatenate([shard["corpus/tokens"] for shard in self.shards])

    @cached_property
    def document(self) -> Integer[ndarray, " context"]:
        """The document of each context."""
        return np.concatenate([shard["corpus/document"] for shard in self.shards])

    @cached_property
    def text(self) -> TextShape:
        """The shape of the text."""
        place = np.concatenate([shard["row/place"] for shard in self.shards])
        n_contexts, length = self.tokens.shape
        return TextShape(n_contexts, length, place)

    @cached_property
    def norm(self) -> Float32[ndarray, " row"] | None:
        """||x|| of every row; None if an older version's unfinished pass wrote the codes."""
        if not all("row/norm" in shard for shard in self.shards):
            return None
        return np.concatenate([shard["row/norm"] for shard in self.shards])

    @cached_property
    def counts(self) -> Int[ndarray, " d_sae"]:
        """The number of firings of each latent."""
        return np.sum([np.diff(shard["firing/start"]) for shard in self.shards], axis=0)

    @property
    def has_near_misses(self) -> bool:
        """Whether near misses were recorded."""
        return all(f"{NEAR}/row" in shard for shard in self.shards)

    def ranges(self, most: int) -> Iterator[tuple[int, int]]:
        """Ranges of few latents with at most `most` firings together, or one latent with more."""
        ends = starts(self.counts)
        first = 0
        while first < self.d_sae:
            last = int(np.searchsorted(ends, ends[first] + most, side="right")) - 1
            last = min(max(last, first + 1), first + LATENTS_AT_ONCE, self.d_sae)
            yield first, last
            first = last

    def firings(self, first: int, last: int) -> Firings:
        """The firings of the latents `first` to `last`."""
        return self._events(ROWS, first, last)[0]

    def near_misses(
        self, first: int, last: int
    ) -> tuple[Firings, Float32[ndarray, " event"]] | None:
        """The near misses of these latents, with their closeness."""
        if not self.has_near_misses:
            return None
        events, (closeness,) = self._events(NEAR, first, last, "closeness")
        return events, closeness

    def _events(
        self, group: str, first: int, last: int, *more: str
    ) -> tuple[Firings, list[ndarray]]:
        """The events of these latents, and more of their columns."""
        start = np.array([shard[f"{group}/start"][first : last + 1] for shard in self.shards])
        counts = np.diff(start, axis=1)
        # By latent, then by shard; a loop over both would take longer than all else.
        begins = starts(counts.ravel())[:-1].reshape(counts.shape)
        order = ragged(begins.T.ravel(), counts.T.ravel())

        def column(name: str) -> ndarray:
            spans = zip(self.shards, start[:, 0].tolist(), start[:, -1].tolist(), strict=True)
            return np.concatenate([shard[f"{group}/{name}"][a:b] for shard, a, b in spans])

        latent = owners(counts.sum(axis=0))
        row = column("row") + spread(self.first_row[:-1], counts.sum(axis=1))
        value = column("value")[order]
        firings = Firings(first, last - first, latent, row[order], value, self.text)
        return firings, [column(name)[order] for name in more]

    def latents_of(
        self, rows: Int[ndarray, " asked"]
    ) -> tuple[Int[ndarray, " asked"], UInt32[ndarray, " entry"]]:
        """How many latents fire on each of `rows`, and these, row after row."""
        with self._lock:
            starts_of, latents = self._by_row
        start = starts_of[rows]
        count = starts_of[rows + 1] - start
        return count, latents[ragged(start, count)]

    @cached_property
    def _by_row(self) -> tuple[Int[ndarray, " row_plus_1"], UInt32[ndarray, " entry"]]:
        """Where each row's latents start, and these."""
        counts = [np.diff(shard["row/start"]) for shard in self.shards]
        latents = [shard["row/latent"] for shard in self.shards]
        return starts(np.concatenate(counts)), np.concatenate(latents)


def _width(shards: list[Hdf5Arrays]) -> int:
    """Number of latents, equal in all shards; 0 without shards."""
    for shard in shards:
        d_sae = shard.facts.get("d_sae")
        lacking = sorted(NEEDED - shard.keys())
        if type(d_sae) is not int or lacking:
            raise UsageError(f"{shard.path} has no {(*lacking, 'd_sae')[0]}")
        if d_sae != shards[0].facts["d_sae"] or shard.kind("firing/start")[1] != (d_sae + 1,):
            raise UsageError(f"{shard.path} is of another SAE")
    return shards[0].facts["d_sae"] if shards else 0

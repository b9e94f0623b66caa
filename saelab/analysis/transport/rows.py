"""The rows of a store that transport is measured on, and which of them stay together."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Int64
from numpy import ndarray
from torch import Tensor

from saelab.activations.columns import Columns
from saelab.activations.order import permutation
from saelab.activations.sequences import Sequences
from saelab.activations.store import ActivationStore
from saelab.analysis.transport.options import TransportOptions
from saelab.config import UsageError
from saelab.training.domain import Domain
from saelab.training.run import Run

MOST_GROUPS = 20
"""Groups of documents whose sums are kept apart, for intervals."""
LEFT_OUT = -1
Rows = dict[str, Tensor]
"""The rows of several sites at the same tokens, by the name of the site."""


@dataclass(frozen=True)
class PairedRows:
    """Rows of some random blocks of a store, each in a group of documents.

    Attributes:
        blocks: blocks of the store, in order.
        groups: for each of these, the group of each row, or LEFT_OUT.
        n_groups: number of groups; group g is in fold g modulo the number of folds.
        n_apart: documents, or contexts, among these rows.
        domain: where the run's SAE applies.
        reads, writes: the sites that it encodes and reconstructs.
    """

    store: ActivationStore
    blocks: Int64[ndarray, " block"]
    groups: tuple[Int64[ndarray, " _"], ...]
    n_groups: int
    n_apart: int
    domain: Domain
    reads: str
    writes: str

    @property
    def n_rows(self) -> int:
        """Number of rows in the blocks, with those left out."""
        return sum(map(len, self.groups))

    def batches(
        self, sites: Iterable[str], device: torch.device
    ) -> Iterator[tuple[Rows, Int[Tensor, " n"], int]]:
        """The rows of some sites, block by block, their groups, and how many were read.

        Rows with a norm outside the SAE's domain are left out, too.
        """
        limits = {self.reads: self.domain.max_norm, self.writes: self.domain.max_target_norm}
        asked = {*sites, *(site for site, limit in limits.items() if limit is not None)}
        for block, group in zip(self.blocks.tolist(), self.groups, strict=True):
            kept = torch.from_numpy(np.flatnonzero(group != LEFT_OUT))
            found = {s: self.store.site(s).read_block(block)[kept] for s in sorted(asked)}
            rows = {site: x.to(device).float() for site, x in found.items()}
            inside = torch.ones(len(kept), dtype=torch.bool, device=device)
            if self.reads in rows:
                target = rows.get(self.writes) if self.writes != self.reads else None
                inside = self.domain.within(rows[self.reads], target)
            where = torch.from_numpy(group)[kept].to(device)[inside]
            yield {site: x[inside] for site, x in rows.items()}, where, len(group)


def choose_rows(
    store: ActivationStore, run: Run, sites: Iterable[str], options: TransportOptions
) -> PairedRows:
    """Random blocks of at least `options.n_tokens` rows, or the whole store.

    Left out are special tokens, positions and norms that the run's training left out, and massive
    activations at any of `sites` (see `TransportOptions.outliers`).

    Raises:
        UsageError: the rows are of fewer documents than there are folds.
    """
    sizes = store.blocks.count
    order = permutation(len(sizes), options.seed)
    n = int(np.searchsorted(np.cumsum(sizes[order]), options.n_tokens)) + 1
    blocks = np.sort(order[:n]).astype(np.int64)
    massive = [np.empty(0, np.int64)]
    if options.outliers == "leave-out":
        massive += [store.outliers(site).rows for site in dict.fromkeys(sites)]
    massive = np.unique(np.concatenate(massive))
    keys = [_keys(store, run.domain, b, massive, options) for b in _by_unit(store, blocks)]
    keys = [part for unit in keys for part in unit]
    found, place = np.unique(np.concatenate(keys), return_inverse=True)
    apart = int((found != LEFT_OUT).sum())
    if apart < options.folds:
        remedy = "harvest a text of more documents, or lower --folds"
        raise UsageError(
            f"The rows of {store.path} are of {apart} "
            f"{options.apart[:-1] if apart == 1 else options.apart}, and {options.folds} folds "
            f"keep {options.apart} whole; {remedy}"
            + (", or take --apart contexts." if options.apart == "documents" else ".")
        )
    n_groups = options.folds * max(1, min(MOST_GROUPS, apart) // options.folds)
    dealt = permutation(apart, options.seed, 1) % n_groups
    group = np.concatenate([np.full(len(found) - apart, LEFT_OUT), dealt])[place]
    cuts = np.cumsum([len(part) for part in keys])[:-1]
    parts = tuple(part.astype(np.int64) for part in np.split(group, cuts))
    config = run.config
    return PairedRows(
        store, blocks, parts, n_groups, apart, run.domain, config.site, config.written_site
    )


def _by_unit(
    store: ActivationStore, blocks: Int64[ndarray, " block"]
) -> list[Int64[ndarray, " some"]]:
    """The blocks of each unit, so that its columns are read once."""
    unit = store.blocks.unit[blocks]
    return [blocks[unit == number] for number in np.unique(unit)]


def _keys(
    store: ActivationStore,
    domain: Domain,
    blocks: Int64[ndarray, " block"],
    massive: Int64[ndarray, " n"],
    options: TransportOptions,
) -> list[Int64[ndarray, " row"]]:
    """The document or context of each row of some blocks of one unit, or LEFT_OUT."""
    unit = int(store.blocks.unit[blocks[0]])
    columns = store.tokens(store.units[unit])
    key = columns.document if options.apart == "documents" else columns.context
    key = np.where(_placed(store, columns, domain, unit), key.astype(np.int64), LEFT_OUT)
    start = store.site(store.sites[0]).unit_start(unit)
    mine = massive[(massive >= start) & (massive < start + len(key))]
    key[mine - start] = LEFT_OUT
    first, count = store.blocks.first, store.blocks.count
    return [key[first[b] : first[b] + count[b]] for b in blocks]


def _placed(store: ActivationStore, columns: Columns, domain: Domain, unit: int) -> ndarray:
    """Which rows training did not leave out for their token or position."""
    tokens = torch.from_numpy(columns.token.astype(np.int64))
    position = columns.position.astype(np.int64)
    if domain.first_position and store.manifest.packed:
        inside = columns.context.astype(np.int64)
        inside = inside - store.manifest.unit_contexts(store.units[unit]).start
        position = Sequences.of(columns.contexts).position[inside, position]
    return domain.places(tokens, positions=torch.from_numpy(position)).numpy()

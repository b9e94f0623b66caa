"""Which rows of a store a training leaves out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer

from saelab.activations.joint import JointSite
from saelab.activations.outliers import RULE, Outliers, left_out_sums
from saelab.activations.sequences import Sequences
from saelab.activations.statistics import ColumnSums, without
from saelab.activations.store import ActivationStore
from saelab.config import UsageError
from saelab.training.config import TrainConfig
from saelab.training.domain import Domain, Part


@dataclass(frozen=True)
class Selection:
    """The rows to train on, of one site or of a transcoder's two sites.

    A row that is massive at one of several sites is left out at all.

    Attributes:
        left_out: the rows left out, as sorted indices in store order.
        read, written: sums over the rows kept, at the site that the SAE reads and at the site that
            it reconstructs.
        domain: the domain of the trained SAE.
        found: the massive rows by site; empty if massive rows are kept.
    """

    left_out: Int64[np.ndarray, " n"]
    read: ColumnSums
    written: ColumnSums
    domain: Domain
    found: Mapping[str, Outliers]

    def kept(self, rows: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " kept"]:
        """The rows among these that are trained on."""
        return rows[~np.isin(rows, self.left_out)] if len(self.left_out) else rows

    def facts(self) -> dict[str, Any]:
        """The facts for provenance.json."""
        sites = {
            name: {
                "median_norm": outliers.median_norm,
                "max_norm": outliers.max_norm,
                "rows": len(outliers.rows),
                "share_of_variance": outliers.share,
            }
            for name, outliers in self.found.items()
        }
        rule = RULE if self.found else None
        return {"rule": rule, "rows_left_out": len(self.left_out), "sites": sites}

    def sentences(self) -> list[str]:
        """What was left out, one sentence per site; empty if nothing was."""
        return [
            f"{len(o.rows)} of {o.n_rows} rows of {name} are left out: massive activations, with a "
            f"norm above {o.max_norm:.4g} where the median is {o.median_norm:.4g}, which hold "
            f"{o.share:.1%} of the variance (--outliers keep: train on them)."
            for name, o in self.found.items()
            if o.max_norm is not None
        ]


def select(store: ActivationStore, config: TrainConfig) -> Selection:
    """The rows that `config` trains on: see `TrainConfig.outliers` and `.first_position`.

    Raises:
        UsageError: no context is as long as `first_position`.
    """
    names = dict.fromkeys((config.site, config.written_site))
    members = [member for name in names for member in store.members(name)]
    found = {
        _label(store, *member): member[0].outliers(member[1])
        for member in members
        if config.outliers == "leave-out"
    }
    rows = np.unique(
        np.concatenate([_early(store, config.first_position), *(o.rows for o in found.values())])
    )
    read, written = (_sums(store, name, found, rows) for name in (config.site, config.written_site))
    return Selection(rows, read, written, _domain(store, config, found), found)


def _early(store: ActivationStore, first_position: int) -> Int64[np.ndarray, " n"]:
    """The rows at positions before `first_position`."""
    length = store.manifest.context_length
    if first_position >= length:
        raise UsageError(
            f"--first-position {first_position} leaves nothing of {store.path}, whose contexts "
            f"have {length} positions, from 0 on."
        )
    start, found = 0, [np.empty(0, np.int64)]
    for unit, n in zip(store.units, store.unit_rows, strict=True):
        if first_position:
            columns = store.tokens(unit)
            # Several sequences may share a context; each has its own first position.
            position = Sequences.of(columns.contexts).position
            context = columns.context.astype(np.int64) - store.manifest.unit_contexts(unit).start
            early = position[context, columns.position] < first_position
            found.append(np.flatnonzero(early) + start)
        start += n
    return np.concatenate(found)


def _label(store: ActivationStore, of: ActivationStore, hook: str) -> str:
    """The name of a site in messages: its hook, and the store if it is another one."""
    return hook if of is store else f"{hook} of {of.path}"


def _sums(
    store: ActivationStore,
    name: str,
    found: Mapping[str, Outliers],
    rows: Int64[np.ndarray, " n"],
) -> ColumnSums:
    """The site's sums without `rows`, which include its own massive rows."""
    parts = []
    for of, hook in store.members(name):
        site, own = of.one_site(hook), found.get(_label(store, of, hook))
        others = rows if own is None else np.setdiff1d(rows, own.rows)
        whole = site.sums if own is None else own.kept
        parts.append(without(whole, left_out_sums(site, others)) if len(others) else whole)
    site = store.site(name)
    return site.joined_sums(parts) if isinstance(site, JointSite) else parts[0]


def _domain(store: ActivationStore, config: TrainConfig, found: Mapping[str, Outliers]) -> Domain:
    manifest = store.manifest
    special: Any = (manifest.model or {}).get("special_token_ids", ())
    limits = {name: outliers.max_norm for name, outliers in found.items()}
    target = None if config.target_site is None else limits.get(config.target_site)
    return Domain(
        tuple(special),
        limits.get(config.site),
        config.first_position,
        target,
        _joint_parts(store, config.site, limits),
        () if config.target_site is None else _joint_parts(store, config.target_site, limits),
    )


def _joint_parts(
    store: ActivationStore, name: str, limits: Mapping[str, float | None]
) -> tuple[Part, ...]:
    """The sites of a joint site; empty for a single site."""
    site = store.site(name)
    if not isinstance(site, JointSite):
        return ()
    each = zip(store.members(name), site.widths, site.factors, strict=True)
    return tuple(
        Part(width, factor, limits.get(_label(store, *member))) for member, width, factor in each
    )

"""What sites of a model carry on from earlier ones, and which latents of a run are carried."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from saelab.activations.store import ActivationStore
from saelab.analysis.transport.checks import (
    check_rows,
    check_store,
    latents_at,
    pairs_of,
    ranks_of,
)
from saelab.analysis.transport.firing import FiringSums, LatentR2, along
from saelab.analysis.transport.fit import RIDGES, Fit, cross_validated
from saelab.analysis.transport.moments import FoldSums, Pair
from saelab.analysis.transport.options import TransportOptions
from saelab.analysis.transport.plan import transport_plan
from saelab.analysis.transport.ranked import RankedMaps
from saelab.analysis.transport.records import SiteTransport, read_transport
from saelab.analysis.transport.rows import PairedRows, choose_rows
from saelab.analysis.transport.splice import Splicer, splice
from saelab.analysis.transport.transport_file import LATENT, transport_path, write_arrays
from saelab.config import UsageError
from saelab.console import note, progress
from saelab.formats.json_file import canonical_digest
from saelab.host.host import Host
from saelab.host.text import corpus_of
from saelab.lm.cost import contexts_at_once
from saelab.lm.load import load_recorded_model, resolve_device
from saelab.lm.protocol import LanguageModel
from saelab.lock import writing
from saelab.provenance import provenance
from saelab.sae.base import AbstractSAE
from saelab.sae.decoder import atoms_of, dtype_of
from saelab.sites import Site
from saelab.training.run import Run

MOST_CONTEXTS = 8
"""Contexts per forward pass if no size was given; each passes the model once for every rank."""
FEW_ROWS = 10
"""Rows per number of a site below which correlations by chance are told."""


@torch.no_grad()
def measure_transport(
    run: Run,
    options: TransportOptions,
    *,
    store: ActivationStore | None = None,
    lm: LanguageModel | None = None,
    device: str | torch.device = "auto",
) -> list[SiteTransport]:
    """Fit maps between pairs of sites of a store, and write RUN/transport/FROM--TO.h5 for each.

    The store is read once for all maps, and once for each pair whose latents are measured; memory
    does not depend on its length. A pair that the run already has with these options is not
    measured again, so an interrupted call continues with the next pair.

    `store` is the run's own by default, and `lm` the run's model, which is loaded on `device` if
    maps are spliced into it.

    Raises:
        UsageError: the store or its sites do not fit the run, the rows are of too few documents or
            too few for the widths, a rank is too large, or another process writes the run.
    """
    store = ActivationStore(run.store_path()) if store is None else store
    with writing(run.path) as lock:
        check_store(run, store)
        chosen = resolve_device(device) if lm is None else lm.device
        sae = run.load_sae(str(chosen))
        work = _Work(run, sae, store, options, lm, chosen)
        pairs = pairs_of(run, sae, store, options)
        ranks = {pair: ranks_of(store, pair, options) for pair in pairs}
        missing = [pair for pair in pairs if work.kept(pair) is None]
        if missing:
            moments = work.moments(missing)
            for pair in missing:
                arrays, facts = work.measured(pair, moments, ranks[pair])
                lock.check()
                write_arrays(transport_path(run.path, *pair), arrays, facts)
        return [read_transport(transport_path(run.path, *pair)) for pair in pairs]


@dataclass
class _Work:
    """One call; the rows are chosen when they are first needed."""

    run: Run
    sae: AbstractSAE
    store: ActivationStore
    options: TransportOptions
    lm: LanguageModel | None
    device: torch.device
    _rows: PairedRows | None = None
    _n: list[int] = field(default_factory=list)

    def kept(self, pair: Pair) -> SiteTransport | None:
        """What the run has of this pair, measured in the same way."""
        path = transport_path(self.run.path, *pair)
        if not path.is_file():
            return None
        try:
            found = read_transport(path)
        except UsageError:
            return None
        return found if found.facts.get("request") == self._request(pair) else None

    def _request(self, pair: Pair) -> str:
        chosen = self.options.model_dump(mode="json", exclude={"from_", "to", "batch_size"})
        return canonical_digest([*pair, chosen, self.run.weights_sha256, self.store.rows_digest])

    def moments(self, pairs: list[Pair]) -> FoldSums:
        """The sums of all pairs, from one pass over the store."""
        sites = list(dict.fromkeys(site for pair in pairs for site in pair))
        rows = choose_rows(self.store, self.run, sites, self.options)
        transport_plan(self.sae, self.store, pairs, rows, self.options, self.device).announce()
        origins = {
            site: torch.from_numpy(self.store.site(site).mean).to(self.device) for site in sites
        }
        sums = FoldSums(origins, pairs, self.options.folds)
        with progress("Products", rows.n_rows, "rows") as bar:
            for found, group, n in rows.batches(sites, self.device):
                sums.add(found, group % self.options.folds)
                bar.advance(n)
        self._rows, self._n = rows, sums.n
        for pair in pairs:
            check_rows(self.store, pair, sum(sums.n) - max(sums.n))
        width = max(self.store.site(site).d_in for site in sites)
        if sum(sums.n) < FEW_ROWS * width:
            note(
                f"{sum(sums.n)} rows for {width} numbers: correlations found on the rows of the "
                "fit are too large, those on other documents too small; raise --n-tokens."
            )
        return sums

    def measured(
        self, pair: Pair, sums: FoldSums, ranks: tuple[int, ...]
    ) -> tuple[dict[str, ndarray], dict[str, Any]]:
        """All of one pair, as arrays and facts of its file."""
        options, origins = self.options, [sums.origins[site] for site in pair]
        ridges = RIDGES if options.ridge is None else (options.ridge,)
        with progress(f"Fit {pair[0]} to {pair[1]}", options.folds + 1, "fits") as bar:
            fit = cross_validated(sums.moments(pair), ridges, lambda: bar.advance(1))
        at = latents_at(self.run, self.store, pair)
        arrays = self._latents(pair, fit, ranks, origins) if at else _no_latents(len(ranks))
        whole = fit.whole.moved(*origins)
        most = ranks[-1]
        arrays |= {
            "map/rank": np.array(ranks, np.int64),
            **{f"curve/{name}": _array(values) for name, values in vars(fit.curves).items()},
            "canonical/rho": _array(fit.canonical.rho),
            "canonical/held_out": _array(fit.held_out_rho),
            "map/U": _array(whole.U[:, :most].float().contiguous()),
            "map/P": _array(whole.P[:, :most].float().contiguous()),
            "map/mean_x": _array(whole.mean_x),
            "map/mean_y": _array(whole.mean_y),
        }
        reason, spliced = self._spliced(pair, whole, ranks)
        facts = self._facts(pair, fit, at) | {"splice": spliced, "no_splice": reason}
        return arrays, facts

    def _latents(
        self, pair: Pair, fit: Fit, ranks: tuple[int, ...], origins: list[Tensor]
    ) -> dict[str, ndarray]:
        rows = self._rows
        assert rows is not None
        maps = [each.moved(*origins) for each in fit.maps]
        sums = FiringSums(
            self.sae, maps, fit.whole.mean_y + origins[1], ranks,
            n_groups=rows.n_groups, seed=self.options.seed,
        )  # fmt: skip
        reads = self.run.config.site
        with progress("Latents", rows.n_rows, "rows") as bar:
            for found, group, n in rows.batches({*pair, reads}, self.device):
                if len(group):
                    codes = self.sae.encode(found[reads].to(dtype_of(self.sae)))
                    sums.add(codes, found[pair[0]], found[pair[1]], group)
                bar.advance(n)
        everywhere = along(atoms_of(self.sae).detach(), fit.residual, fit.spread)
        return _latent_arrays(sums.results(), everywhere)

    def _spliced(
        self, pair: Pair, whole: RankedMaps, ranks: tuple[int, ...]
    ) -> tuple[str | None, list[dict[str, Any]]]:
        """Why the live model was not run, or what it makes of this pair."""
        if not self.options.n_splice:
            return "It was not asked for (--n-splice 0).", []
        if self.run.on_arrays:
            return "The run was trained on arrays, and this needs a language model.", []
        if not Site.of(pair[1]).replaceable:
            return f"The skip connection goes past {pair[1]}, so it cannot be replaced.", []
        if self.lm is None:
            self.lm = load_recorded_model(self.run.model(), device=self.device)
        host = Host.of_run(self.run, self.lm, self.sae)
        limits = {}
        if self.options.outliers == "leave-out":
            found = {site: self.store.outliers(site).max_norm for site in pair}
            limits = {site: limit for site, limit in found.items() if limit is not None}
        corpus = corpus_of(self.run, self.lm, "held-out")
        length = corpus.context_length
        fit = contexts_at_once(self.lm, length, most=MOST_CONTEXTS)
        batch = self.options.batch_size or min(fit, -(-self.options.n_splice // length))
        splicer = Splicer(host, pair, whole, ranks, limits)
        spliced = splice(splicer, corpus, n_tokens=self.options.n_splice, batch_size=batch)
        return None, [each.model_dump() for each in spliced]

    def _facts(self, pair: Pair, fit: Fit, at: str) -> dict[str, Any]:
        rows, run = self._rows, self.run
        assert rows is not None
        n = sum(self._n)
        return {
            "from": pair[0],
            "to": pair[1],
            "latents_at": at,
            "site": run.config.written_site,
            "ridge": fit.ridge,
            "n_rows": n,
            "n_left_out": rows.n_rows - n,
            "left_out": {"outliers": self.options.outliers, **run.domain.facts()},
            "n_apart": rows.n_apart,
            "apart": self.options.apart,
            "n_groups": rows.n_groups,
            "folds": self._n,
            "options": self.options.model_dump(mode="json"),
            "request": self._request(pair),
            "store": {
                "path": str(self.store.path),
                "content_digest": self.store.manifest.content_digest,
                "rows_digest": self.store.rows_digest,
            },
            "model": run.provenance()["model"],
            "sae_sha256": run.weights_sha256,
            "device": str(self.device),
            "provenance": provenance(),
        }


def _latent_arrays(found: LatentR2, everywhere: Tensor) -> dict[str, ndarray]:
    columns = {**vars(found), "everywhere": everywhere.float()}
    return {
        "latent/n_fired": _array(found.n_fired),
        "latent/r2": _array(found.r2),
        **{f"latent/{name}": _array(columns[name]) for name in LATENT},
    }


def _no_latents(n_ranks: int) -> dict[str, ndarray]:
    empty = np.empty(0, np.float32)
    return {
        "latent/n_fired": np.empty(0, np.int64),
        "latent/r2": np.empty((n_ranks, 0), np.float32),
        **{f"latent/{name}": empty for name in LATENT},
    }


def _array(values: Tensor) -> ndarray:
    return values.detach().cpu().numpy()

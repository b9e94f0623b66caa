"""What one site carries on from another, as typed values; readable without torch or a model."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Int8, Integer
from numpy import ndarray
from pydantic import Field, FiniteFloat, PositiveInt, TypeAdapter, ValidationError

from saelab import drawing
from saelab.analysis.transport.transport_file import (
    CURVES,
    DIRECTORY,
    LATENT,
    read_arrays,
    transport_path,
)
from saelab.config import Config, UsageError, first_problem

if TYPE_CHECKING:
    from saelab.analysis.transport.operators import Transport

VERDICTS = ("carried", "computed", "undecided", "rare")
"""Of a latent: R² is at least the limit, or below it, with its whole 95 % interval; its interval
has the limit inside; it fires on too few tokens."""
CARRIED = 0.5
"""The limit: half of the variance that a latent's direction has on the latent's tokens."""
MAX_SPLICES, MAX_NAME = 1000, 200
CONTROLS = ("identity", "mean", "direction", "other")


SpliceName = Literal["plain", "mean", "identity", "transported", "sae", "sae-transported"]


class Spliced(Config):
    """The live model with all rows of the later site replaced."""

    name: SpliceName
    """By what: nothing; the mean; the earlier row, shifted by the means' difference; the
    transported row; the SAE's reconstruction; the reconstruction of the transported row."""
    rank: PositiveInt | None
    """Rank of the map, if there is one."""
    ce: FiniteFloat
    """Cross-entropy in nats per token."""
    recovered: FiniteFloat
    """1 for the plain model, 0 for the mean at every token."""
    low: FiniteFloat | None
    """Lower end of its 95 % interval over documents; None with fewer than 3 groups of them."""
    high: FiniteFloat | None
    """Upper end."""


_SPLICES = TypeAdapter(Annotated[tuple[Spliced, ...], Field(max_length=MAX_SPLICES)])


@dataclass(frozen=True)
class SiteTransport:
    """What a later site of a model carries on from an earlier one.

    R² is of maps fitted on other documents, and NaN for latents that fire on too few tokens.

    Attributes:
        path: the file.
        earlier, later: the sites.
        n_fired: on how many tokens each latent fires; empty if latents were not measured.
        ranks: ranks of the maps.
        r2: R² of each latent on the tokens where it fires, by rank.
        low, high: its 95 % interval at the largest rank.
        identity, mean: R² of the baselines: the earlier row shifted by the means' difference, and
            the mean of all tokens.
        direction, other: R² of the map along a random direction, and along another latent's
            decoder row, on the tokens of each latent.
        everywhere: R² of the map along the decoder row on all tokens.
        curves: by name, what maps of rank 0, 1, ... explain (see `Curves` in fit.py).
        rho, held_out_rho: canonical correlations of the sites, on the rows that they were found on
            and on other documents.
        splices: the live model on transported rows; empty if it was not run.
        facts: options, digests, numbers of rows and documents, JSON-ready.
    """

    path: Path
    earlier: str
    later: str
    n_fired: Integer[ndarray, " latent"]
    ranks: Integer[ndarray, " rank"]
    r2: Float[ndarray, "rank latent"]
    low: Float[ndarray, " latent"]
    high: Float[ndarray, " latent"]
    identity: Float[ndarray, " latent"]
    mean: Float[ndarray, " latent"]
    direction: Float[ndarray, " latent"]
    other: Float[ndarray, " latent"]
    everywhere: Float[ndarray, " latent"]
    curves: dict[str, Float[ndarray, " _"]]
    rho: Float[ndarray, " k"]
    held_out_rho: Float[ndarray, " k"]
    splices: tuple[Spliced, ...]
    facts: dict[str, Any]

    def __len__(self) -> int:
        """Number of latents measured."""
        return len(self.n_fired)

    @property
    def best(self) -> Float[ndarray, " latent"]:
        """R² at the largest rank."""
        return self.r2[-1]

    def verdict(self, limit: float = CARRIED) -> Int8[ndarray, " latent"]:
        """For each latent the index in VERDICTS, with this limit of R²."""
        out = np.full(len(self), VERDICTS.index("undecided"), np.int8)
        with np.errstate(invalid="ignore"):
            out[self.low >= limit] = VERDICTS.index("carried")
            out[self.high < limit] = VERDICTS.index("computed")
        out[np.isnan(self.best)] = VERDICTS.index("rare")
        return out

    def count(self, verdict: str, limit: float = CARRIED) -> int:
        """How many latents have this verdict."""
        return int((self.verdict(limit) == VERDICTS.index(verdict)).sum())

    @cached_property
    def size(self) -> float:
        """The size of the linear transport subspace: the participation ratio of the correlations.

        (sum rho)² / sum rho², on documents that the directions were not found on.
        """
        return _participation(self.held_out_rho)

    @property
    def fitted_size(self) -> float:
        """The same on the rows of the fit, as the paper's code has it; too large for few rows."""
        return _participation(self.rho)

    def efficiency(self, rank: int, *, svd: bool = False) -> float:
        """How much of what a map of this rank can explain it does explain, on the fitted rows.

        Every direction of the later site counts alike; at most 1. `svd`: of the full map cut by its
        singular values, as in the paper, instead of the best map in the plain metric.

        Raises:
            UsageError: the maps have no such rank.
        """
        if not 0 < rank <= len(self.rho):
            raise UsageError(f"Maps have ranks from 1 to {len(self.rho)}; got {rank}.")
        found = self.curves["fitted_svd" if svd else "fitted"][rank]
        return float(found / max(self.curves["ceiling"][rank], 1e-300))

    def spliced(self, name: str, rank: int | None = None) -> Spliced | None:
        """One row of `splices`: of this rank, or of the last with this name."""
        found = [s for s in self.splices if s.name == name and rank in (None, s.rank)]
        return found[-1] if found else None

    def operator(self, rank: int | None = None) -> "Transport":
        """The map of a rank, fitted on all rows, for rows of the earlier site.

        Raises:
            UsageError: the file keeps no map of this rank, or is damaged.
        """
        import torch

        from saelab.analysis.transport.ranked import RankedMaps

        stored = read_arrays(self.path)
        names = ("map/U", "map/P", "map/mean_x", "map/mean_y")
        maps = RankedMaps(*(torch.from_numpy(stored[n].astype(np.float64)) for n in names))
        if rank is not None and not 0 < rank <= maps.most:
            raise UsageError(f"{self.path} keeps maps of ranks 1 to {maps.most}; got {rank}.")
        return maps.transport(rank)

    def record(self, latent: int, limit: float = CARRIED) -> dict[str, Any]:
        """One latent's figures, JSON-ready; None for those that are unknown.

        Raises:
            UsageError: there is no such latent.
        """
        if not 0 <= latent < len(self):
            raise UsageError(f"Latents measured are 0 to {len(self) - 1}; got {latent}.")
        values = {"r2": self.best, **{name: getattr(self, name) for name in LATENT}}
        return {
            "latent": latent,
            "verdict": VERDICTS[self.verdict(limit)[latent]],
            "n_fired": int(self.n_fired[latent]),
            **{name: _known(float(column[latent])) for name, column in values.items()},
        }

    def summary(self, limit: float = CARRIED) -> dict[str, Any]:
        """How many latents have which verdict, and what chance and the baselines reach."""
        measured = ~np.isnan(self.best)
        columns = {"latents": self.best, **{n: getattr(self, n) for n in CONTROLS}}
        return {
            "from": self.earlier,
            "to": self.later,
            **{name: self.count(name, limit) for name in VERDICTS},
            "limit": limit,
            "median_r2": {
                name: _known(float(np.median(column[measured]))) if measured.any() else None
                for name, column in columns.items()
            },
            "r2": float(self.curves["r2"][-1]),
            "size": self.size,
            "efficiency": {int(rank): self.efficiency(int(rank)) for rank in self.ranks},
            "splices": [splice.model_dump() for splice in self.splices],
        }

    figure = drawing.figure


def load_transport(run: str | Path) -> list[SiteTransport]:
    """What `measure_transport` wrote in a run, in the order of the sites; needs no model.

    Raises:
        UsageError: there is nothing yet, or a file is damaged.
    """
    paths = transport_files(run)
    if not paths:
        raise UsageError(f"{Path(run) / DIRECTORY} has no file; run `saelab transport` first.")
    return [read_transport(path) for path in paths]


def transport_files(run: str | Path) -> list[Path]:
    """The files of pairs of sites in a run, in natural order of their names."""
    paths = (Path(run) / DIRECTORY).glob("*.h5")
    return sorted((p for p in paths if not p.name.startswith(".")), key=_natural)


def read_transport(path: Path) -> SiteTransport:
    """One pair of sites.

    Raises:
        UsageError: the file is missing or damaged.
    """
    stored = read_arrays(path)
    facts = stored.facts
    earlier, later = (_name(path, facts, key) for key in ("from", "to"))
    if transport_path(path.parent.parent, earlier, later).name != path.name:
        raise UsageError(f"{path} is of {earlier} and {later}; give it back its name.")
    return SiteTransport(
        path=path,
        earlier=earlier,
        later=later,
        n_fired=stored["latent/n_fired"],
        ranks=stored["map/rank"],
        r2=stored["latent/r2"],
        **{name: stored[f"latent/{name}"] for name in LATENT},
        curves={name: stored[f"curve/{name}"] for name in CURVES},
        rho=stored["canonical/rho"],
        held_out_rho=stored["canonical/held_out"],
        splices=_splices(path, facts),
        facts=facts,
    )


def _splices(path: Path, facts: dict[str, Any]) -> tuple[Spliced, ...]:
    """The rows of facts["splice"]; the file is untrusted."""
    try:
        return _SPLICES.validate_python(facts.get("splice"))
    except ValidationError as error:
        raise UsageError(
            f"{path} is not a whole file of transport: splice.{first_problem(error)}."
        ) from None


def _name(path: Path, facts: dict[str, Any], key: str) -> str:
    name = facts.get(key)
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise UsageError(f"{path} is not a whole file of transport: it does not say {key!r}.")
    return name


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Layers in order of their numbers: 2 before 10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def _participation(rho: Float[ndarray, " k"]) -> float:
    rho = np.clip(rho.astype(np.float64), 0, None)
    return float(rho.sum() ** 2 / max((rho**2).sum(), 1e-300))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value

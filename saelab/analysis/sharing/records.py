"""RUN/sharing.h5: how far each latent of a crosscoder is of each site, readable without torch.

F is the number of latents, S that of sites. Floats are float32.

    latent/n_fired             int64 [F]   tokens on which each fires
    latent/norm                [F, S]      decoder norms; they sum to 1 over the sites
    latent/error_scale         [F, S]      beta of latent scaling on the sites' errors
    latent/whole_scale         [F, S]      beta of latent scaling on the sites' reconstructions

The facts are JSON: format, the sites' names, their FVU, number of rows, digest of the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64
from numpy import ndarray

from saelab import drawing
from saelab.config import UsageError
from saelab.formats.hdf5_file import Hdf5Arrays, read_format, write_hdf5

FORMAT = "saelab-sharing/1"
FILE = "sharing.h5"
SPECIFIC, SHARED = 0.2, 0.8
"""A latent is specific to a site if its norm at every other site is at most this share of it, and
shared if it is at least that share at every site. With two sites these are relative norms above 0.9
or below 0.1, and between 0.4 and 0.6 (as in arXiv 2504.02922)."""
ERROR_LIMIT, WHOLE_LIMIT = 0.2, 0.5
"""Ratios of latent scaling below which a specific latent is genuine (the same)."""
ARRAYS = {"n_fired": "i", "norm": "f", "error_scale": "f", "whole_scale": "f"}


@dataclass(frozen=True)
class Sharing:
    """How far each latent is of each site.

    A latent specific to a site may be spurious, an artifact of an L1 penalty. Latent scaling asks
    the data: with w the latent's decoder row at its strongest site, beta is the scale at which
    f w explains another site's error best (`error_scale`; its own part there counts as error), or
    that site's reconstruction (`whole_scale`). Over the same beta at the strongest site they give
    `error_ratio` and `whole_ratio`, the paper's nu. A large error ratio means that the latent is
    wanted at the other site, whose row was shrunk to zero; a large ratio of the reconstruction,
    that other latents do its work there.

    Attributes:
        sites: names of the sites.
        fvu: of each site.
        n_rows: rows that were held back from training, on which it was measured.
        n_fired: rows on which each latent fires.
        norm: decoder norms of each latent at each site; they sum to 1.
        error_scale, whole_scale: the betas; NaN for a latent that never fires, or sites of unequal
            widths.
    """

    sites: tuple[str, ...]
    fvu: tuple[float, ...]
    n_rows: int
    n_fired: Int64[ndarray, " latent"]
    norm: Float32[ndarray, "latent site"]
    error_scale: Float32[ndarray, "latent site"]
    whole_scale: Float32[ndarray, "latent site"]

    def __len__(self) -> int:
        return len(self.norm)

    @cached_property
    def strongest(self) -> Int[ndarray, " latent"]:
        """The site where each latent's decoder row is longest."""
        return self.norm.argmax(axis=1)

    @cached_property
    def relative(self) -> Float32[ndarray, "latent site"]:
        """Each norm over the latent's largest."""
        return self.norm / np.maximum(self.norm.max(axis=1, keepdims=True), 1e-30)

    def specific(self, site: int) -> Bool[ndarray, " latent"]:
        """Which latents are specific to a site, by their norms."""
        others = np.delete(self.relative, site, axis=1).max(axis=1)
        return (self.strongest == site) & (others <= SPECIFIC)

    @property
    def shared(self) -> Bool[ndarray, " latent"]:
        """Which latents all sites share, by their norms."""
        return self.relative.min(axis=1) >= SHARED

    @property
    def error_ratio(self) -> Float32[ndarray, " latent"]:
        """The largest ratio of `error_scale` at another site to that at the strongest one."""
        return self._ratio(self.error_scale)

    @property
    def whole_ratio(self) -> Float32[ndarray, " latent"]:
        """The same of `whole_scale`."""
        return self._ratio(self.whole_scale)

    @property
    def genuine(self) -> Bool[ndarray, " latent"]:
        """Whose ratios are both small: what a specific latent should have; False if unknown."""
        return (self.error_ratio < ERROR_LIMIT) & (self.whole_ratio < WHOLE_LIMIT)

    figure = drawing.figure

    def _ratio(self, scale: Float32[ndarray, "latent site"]) -> Float32[ndarray, " latent"]:
        rows = np.arange(len(scale))
        own, others = scale[rows, self.strongest], scale.copy()
        others[rows, self.strongest] = -np.inf
        with np.errstate(divide="ignore", invalid="ignore"):
            found = others.max(axis=1) / own
        return np.where(own > 0, found, np.nan).astype(np.float32)

    def summary(self) -> dict[str, Any]:
        """Numbers of latents that fire, by what they are of, and the sites' FVU; JSON-ready."""
        alive = self.n_fired > 0
        specific = [self.specific(i) & alive for i in range(len(self.sites))]
        shared = self.shared & alive
        rest = alive & ~shared & ~np.any(specific, axis=0)
        return {
            "n_rows": self.n_rows,
            "silent": int((~alive).sum()),
            "shared": int(shared.sum()),
            "between": int(rest.sum()),
            "sites": [
                {
                    "site": name,
                    "fvu": fvu,
                    "specific": int(which.sum()),
                    "genuine": int((which & self.genuine).sum()),
                }
                for name, fvu, which in zip(self.sites, self.fvu, specific, strict=True)
            ],
        }

    def record(self, latent: int) -> dict[str, Any]:
        """One latent's figures, JSON-ready; None for what is not known."""
        ratios = (float(self.error_ratio[latent]), float(self.whole_ratio[latent]))
        return {
            "latent": latent,
            "n_fired": int(self.n_fired[latent]),
            "norm": self.norm[latent].tolist(),
            "error_ratio": ratios[0] if np.isfinite(ratios[0]) else None,
            "whole_ratio": ratios[1] if np.isfinite(ratios[1]) else None,
        }


def save_sharing(found: Sharing, run: Path, facts: dict[str, Any]) -> Path:
    """Write the figures into the run, whole or not at all; `facts` say what they are of."""
    arrays = {f"latent/{name}": getattr(found, name) for name in ARRAYS}
    known = {"sites": found.sites, "fvu": found.fvu, "n_rows": found.n_rows, "format": FORMAT}
    write_hdf5(run / FILE, arrays, facts | known)
    return run / FILE


def load_sharing(run: Path) -> Sharing:
    """The figures in a run's `sharing.h5`.

    Raises:
        UsageError: the file is missing, damaged, or of another format.
    """
    stored = read_format(run / FILE, "file of shared latents", FORMAT, "saelab diff")
    try:
        return _checked(stored)
    except UsageError:
        raise
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{run / FILE} is not a whole file of shared latents: {error}.") from error


def _checked(stored: Hdf5Arrays) -> Sharing:
    sites, fvu = stored.facts["sites"], stored.facts["fvu"]
    n_rows = stored.facts["n_rows"]
    if not _texts(sites) or not isinstance(fvu, list) or len(fvu) != len(sites):
        raise ValueError("its sites have no names")
    if type(n_rows) is not int or not all(isinstance(each, float) for each in fvu):
        raise ValueError("its figures are no numbers")
    n = stored.kind("latent/n_fired")[1]
    for name, kind in ARRAYS.items():
        found, shape = stored.kind(f"latent/{name}")
        if found != kind or shape != (n if name == "n_fired" else (*n, len(sites))):
            raise ValueError(f"latent/{name} has the shape {list(shape)}")
    fired, *rest = (stored[f"latent/{name}"] for name in ARRAYS)
    norm, *scales = (each.astype(np.float32) for each in rest)
    if not np.isfinite(norm).all() or (norm < 0).any():
        raise ValueError("a norm is no norm")
    return Sharing(tuple(sites), tuple(fvu), n_rows, fired.astype(np.int64), norm, *scales)


def _texts(values: object) -> bool:
    one: Sequence[object] = values if isinstance(values, list) else ()
    return len(one) > 1 and all(isinstance(each, str) for each in one)

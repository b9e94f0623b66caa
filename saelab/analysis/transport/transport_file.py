"""RUN/transport/FROM--TO.h5: what of one site another one carries on, readable without torch.

F is the number of latents (0 for pairs in which latents are not measured), R the number of ranks,
k the largest rank possible, r the largest kept. Floats of `latent`, U and P are float32, the others
float64.

    latent/n_fired              int64 [F]      tokens on which each fires
    latent/r2                   [R, F]         R² on these tokens, by rank
    latent/low, high            [F]            95 % interval at the largest rank
    latent/identity, mean       [F]            R² of the baselines
    latent/direction, other     [F]            R² of the map along a random direction, or another
                                               latent, on the latent's tokens
    latent/everywhere           [F]            R² of the map on all tokens
    map/rank                    int64 [R]      the ranks
    curve/r2, whitened, whitened_ceiling, fitted, fitted_svd, ceiling
                                [k + 1]        by rank from 0 on, see `Curves` in fit.py
    canonical/rho, held_out     [k]            canonical correlations
    map/U, P                    [d_in, r], [d_out, r]    y = mean_y + (x - mean_x) U P^T
    map/mean_x, mean_y          [d_in], [d_out]

The root's attribute `facts` is JSON: format, from, to, latents_at, splice, ridge, numbers of
documents and rows, options, digests of the run's weights and of the store's rows, provenance.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from saelab.config import UsageError
from saelab.formats.hdf5_file import Hdf5Arrays, read_format, write_hdf5

FORMAT = "saelab-transport/1"
DIRECTORY = "transport"
LATENT = ("low", "high", "identity", "mean", "direction", "other", "everywhere")
CURVES = ("r2", "whitened", "whitened_ceiling", "fitted", "fitted_svd", "ceiling")
AXES = {
    "latent/n_fired": ("F",),
    "latent/r2": ("R", "F"),
    **{f"latent/{name}": ("F",) for name in LATENT},
    "map/rank": ("R",),
    **{f"curve/{name}": ("k + 1",) for name in CURVES},
    "canonical/rho": ("k",),
    "canonical/held_out": ("k",),
    "map/U": ("d_in", "r"),
    "map/P": ("d_out", "r"),
    "map/mean_x": ("d_in",),
    "map/mean_y": ("d_out",),
}
"""The axes of every array; those of one name are equally long."""
WHOLE = ("latent/n_fired", "map/rank")


def transport_path(run: str | Path, earlier: str, later: str) -> Path:
    """Where a run keeps what is carried between two sites."""
    names = (re.sub(r"[^A-Za-z0-9._-]", "_", site) for site in (earlier, later))
    return Path(run) / DIRECTORY / f"{'--'.join(names)}.h5"


def write_arrays(path: Path, arrays: Mapping[str, ndarray], facts: dict[str, Any]) -> None:
    """Write a pair of sites, whole or not at all."""
    assert set(arrays) == set(AXES)
    write_hdf5(path, arrays, {**facts, "format": FORMAT}, facts_in="dataset")


def read_arrays(path: Path) -> Hdf5Arrays:
    """The arrays of a file, whose shapes and values were checked, and its facts.

    Raises:
        UsageError: the file is missing, damaged, or of another format.
    """
    stored = read_format(path, "file of transport", FORMAT, "saelab transport")
    try:
        _check(stored, _sizes(stored))
    except UsageError:
        raise
    except (KeyError, ValueError) as error:
        raise UsageError(f"{path} is not a whole file of transport: {error}.") from error
    return stored


def _check(stored: Hdf5Arrays, sizes: dict[str, int]) -> None:
    ranks = stored["map/rank"]
    if sizes["k + 1"] != sizes["k"] + 1:
        raise ValueError("its curves are not as long as its correlations")
    if not len(ranks) or (np.diff(ranks) <= 0).any() or not 0 < ranks[0] <= ranks[-1]:
        raise ValueError("its ranks do not rise from 1 on")
    if ranks[-1] > min(sizes["r"], sizes["k"]):
        raise ValueError("its ranks are larger than its map's")
    if (stored["latent/n_fired"] < 0).any():
        raise ValueError("a latent fires on fewer than no tokens")


def _sizes(stored: Hdf5Arrays) -> dict[str, int]:
    """The length of every axis; the file is untrusted."""
    sizes: dict[str, int] = {}
    for name, axes in AXES.items():
        kind, shape = stored.kind(name)
        if len(shape) != len(axes) or kind != ("i" if name in WHOLE else "f"):
            raise ValueError(f"{name} has the shape {list(shape)} or another kind of numbers")
        for axis, length in zip(axes, shape, strict=True):
            if sizes.setdefault(axis, length) != length:
                raise ValueError(f"{name} has the shape {list(shape)}, unlike the others")
    return sizes

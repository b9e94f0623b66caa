"""A file of transport with known contents, made without a store."""

from pathlib import Path

import numpy as np

from saelab.analysis.transport.transport_file import (
    AXES,
    CURVES,
    LATENT,
    transport_path,
    write_arrays,
)

D, RANKS = 8, (1, 4, 8)


MAPS = ("map/U", "map/P", "map/mean_x", "map/mean_y")


def write_transport(run: Path, earlier: str, later: str, n_latents: int, **facts: object) -> Path:
    """R² falls from 1 with the number of the latent; the last two are rare."""
    best = np.linspace(1, -1.5, n_latents).astype(np.float32)
    best[-2:] = np.nan
    arrays = {
        "latent/n_fired": np.arange(n_latents)[::-1] * 40 + 3,
        "latent/r2": np.stack([best - 0.2, best - 0.1, best]),
        **{f"latent/{name}": best - np.float32(0.05) for name in LATENT},
        "map/rank": np.array(RANKS),
        **{f"curve/{name}": np.linspace(0, 0.8, D + 1) for name in CURVES},
        "canonical/rho": np.linspace(1, 0.1, D),
        "canonical/held_out": np.linspace(0.9, 0, D),
        **{name: np.zeros([D] * len(AXES[name]), np.float32) for name in MAPS},
    }
    arrays["latent/high"] = best + np.float32(0.05)
    splices = [
        {"name": name, "rank": rank, "ce": ce, "recovered": value, "low": None, "high": None}
        for name, rank, ce, value in (
            ("plain", None, 2.0, 1.0), ("mean", None, 8.0, 0.0), ("transported", 1, 7.5, 0.1),
            ("transported", 8, 3.0, 0.8),
        )
    ]  # fmt: skip
    said = {
        "from": earlier, "to": later, "splice": splices, "no_splice": None, "n_rows": 5000,
        "n_left_out": 7, "apart": "documents", **facts,
    }  # fmt: skip
    path = transport_path(run, earlier, later)
    path.parent.mkdir(exist_ok=True)
    write_arrays(path, arrays, said)
    return path

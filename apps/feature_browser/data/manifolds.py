"""The activations behind bilinear latents, read once per run."""

from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.data.reading import stamp
from saelab.training.run import Run

if TYPE_CHECKING:
    from saelab.analysis.manifold import Manifold, UnitRows
    from saelab.sae.base import AbstractSAE

POINTS = 600


def manifold(card: RunCard, latent: int) -> "Manifold":
    """Activations of the run's store in the plane of a latent's form.

    Raises:
        UsageError: the store or the weights are missing or damaged.
    """
    from saelab.analysis.manifold import manifold_of

    sae, rows = _read(card.path, stamp(card.weights_path), stamp(card.features_path))
    return manifold_of(sae, latent, rows, n_points=POINTS)


@st.cache_resource(max_entries=2, show_spinner=False)
def _read(path: Path, weights: int, features: int) -> "tuple[AbstractSAE, UnitRows]":
    del weights, features  # parts of the cache's key only
    from saelab.analysis.manifold import unit_rows

    run = Run(path)
    return run.load_sae("cpu"), unit_rows(run)

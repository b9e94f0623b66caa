"""The manifold of a bilinear latent: activations in the plane of its form (arXiv 2510.16820)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor
from torch.nn import functional as F

from saelab import drawing
from saelab.activations.store import ActivationStore
from saelab.analysis.feature_file import FeatureFile
from saelab.config import UsageError
from saelab.sae.base import AbstractSAE
from saelab.training.run import Run

SHOWN_VALUES = 12


@dataclass(frozen=True)
class UnitRows:
    """Random rows of the store that a run was trained on, with unit norm.

    Attributes:
        u: `[row d]`, in random order.
        tokens: each row's token: its name if the run has features, else its number; empty if it is
            no text.
    """

    u: Float[Tensor, "row d"]
    tokens: list[str]


@dataclass(frozen=True)
class Manifold:
    """A latent's quadratic form u^T F u, and unit activations u in the plane of its eigenvectors.

    Attributes:
        values: eigenvalues of F, by falling magnitude; at most 12 of them.
        share: the share of ||F||_F^2 that the plane's two hold. It is 1 unless the latent is mixed.
        points: `[n 2]`, coordinates along the first two eigenvectors, inside the unit circle. The
            strongest come first.
        strength: u^T F u of each point: the value of the latent, or if mixed of its composite form.
        tokens: each point's token.
        n_rows: number of rows from which the points were taken.
        n_strongest: of the points, those with the largest |strength| of all rows; the others are
            random.
    """

    latent: int
    values: list[float]
    share: float
    points: Float[ndarray, "n 2"]
    strength: Float[ndarray, " n"]
    tokens: list[str]
    n_rows: int
    n_strongest: int

    figure = drawing.figure


def latent_manifold(
    run: Run, latent: int, *, n_rows: int = 20_000, n_points: int = 2_000, seed: int = 0
) -> Manifold:
    """The activations of a run's store in the plane of a latent's form.

    Half of the points are those on which the form is strongest, of `n_rows` random rows; the other
    half are random.

    Raises:
        UsageError: the SAE's latents are no quadratic forms, there is no such latent, or the store
            is missing.
    """
    check_forms(run)
    sae = run.load_sae("cpu")
    return manifold_of(sae, latent, unit_rows(run, n_rows=n_rows, seed=seed), n_points=n_points)


def check_forms(run: Run) -> None:
    """Refuse a run whose latents have no quadratic form.

    Raises:
        UsageError: names the variant.
    """
    if run.config.sae.decoder_problem is None:
        raise UsageError(
            f"The latents of a {run.config.sae.variant} SAE are directions, and the manifold view "
            "shows quadratic forms; train the variant bilinear."
        )


def unit_rows(run: Run, *, n_rows: int = 20_000, seed: int = 0) -> UnitRows:
    """Random rows of the run's store that its SAE applies to.

    Raises:
        UsageError: the store is missing or damaged.
    """
    store = ActivationStore(run.store_path())
    chosen = store.sample_rows(min(n_rows, store.n_rows), seed)
    x = store.site(run.config.site).take(chosen).float()
    ids, positions = (
        torch.from_numpy(found.astype(np.int64)) for found in store.row_tokens(chosen)
    )
    covered = run.domain.covers(ids, x, positions=positions)
    return UnitRows(F.normalize(x[covered], dim=1), _names(run, ids[covered].tolist()))


@torch.no_grad()
def manifold_of(
    sae: AbstractSAE, latent: int, rows: UnitRows, *, n_points: int = 2_000
) -> Manifold:
    """The manifold of one latent on these rows.

    Raises:
        UsageError: the latents are no quadratic forms, or there is no such latent.
    """
    if not 0 <= latent < sae.d_sae:
        raise UsageError(f"There is no latent {latent}; the SAE has 0 to {sae.d_sae - 1}.")
    form = sae.quadratic_form(latent)
    if form is None:
        raise UsageError(f"Latent {latent} is no quadratic form.")
    strength, points = form.at(rows.u), form.project(rows.u)
    strongest = strength.abs().topk(min(n_points // 2, len(strength))).indices
    others = torch.arange(len(strength))[~torch.isin(torch.arange(len(strength)), strongest)]
    chosen = torch.cat([strongest, others[: n_points - len(strongest)]])
    return Manifold(
        latent,
        form.values[:SHOWN_VALUES].tolist(),
        form.share(),
        points[chosen].numpy(),
        strength[chosen].numpy(),
        [rows.tokens[i] for i in chosen.tolist()],
        len(rows.u),
        len(strongest),
    )


def _names(run: Run, ids: list[int]) -> list[str]:
    names = FeatureFile(run.features_path).vocabulary if run.features_path.is_file() else ()
    known = (names[i] if 0 <= i < len(names) else f"token {i}" for i in ids)
    return ["" if i < 0 else name for i, name in zip(ids, known, strict=True)]

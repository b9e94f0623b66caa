"""What `measure_transport` does."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from saelab.config import Config, Heading


class TransportOptions(Config):
    """Which sites, on how much, and how maps between them are fitted."""

    from_: Annotated[tuple[str, ...], Heading("Sites")] = Field(min_length=1)
    """The earlier sites; each is paired with each later site that is computed after it."""
    to: tuple[str, ...] = ()
    """The later sites; default: the site that the run's SAE writes. Latents are measured in pairs
    with this site, everything else in all pairs."""
    n_tokens: Annotated[int, Heading("Maps")] = Field(default=250_000, gt=0)
    """Rows of the store to read, from random parts of it."""
    rank: tuple[PositiveInt, ...] = ()
    """Ranks of the maps for latents and splices; default: 1, 4, 16, ... and the full rank. The
    curves have every rank."""
    ridge: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Ridge as a share of the mean eigenvalue of X^T X; default: the best of nine on the folds."""
    folds: int = Field(default=5, ge=2, le=20)
    """Folds of documents: each is predicted by maps that were fitted on the others."""
    apart: Literal["documents", "contexts"] = "documents"
    """What folds and intervals keep whole; contexts of one document are alike, so they make maps
    look better than they are on other documents."""
    outliers: Literal["leave-out", "keep"] = "leave-out"
    """Leave out tokens whose activations are massive at one of the sites, as training does."""
    n_splice: Annotated[int, Heading("Live model")] = Field(default=4096, ge=0)
    """Held-out tokens on which the model runs on transported activations; 0: leave it out."""
    batch_size: int | None = Field(default=None, gt=0)
    """Contexts per forward pass; default: 8, or fewer if 8 would not fit in memory."""
    seed: Annotated[int, Heading("Maps")] = Field(default=0, ge=0)
    """Decides which parts of the store are read, which documents are together in a fold, and the
    random directions."""

"""Measuring what the latents of a crosscoder share, on rows held back from training."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.activations.store import ActivationStore
from saelab.analysis.sharing.records import Sharing, save_sharing
from saelab.config import UsageError
from saelab.console import progress
from saelab.evaluation.arrays import ROWS_AT_ONCE, held_back
from saelab.evaluation.reconstruction import Reconstruction
from saelab.lock import writing
from saelab.provenance import provenance
from saelab.sae.base import AbstractSAE
from saelab.sae.dictionary import site_norms
from saelab.training.run import Run
from saelab.types import SparseCodes

NUMBERS_AT_ONCE = 2**24


class LatentScaling:
    """Sums for the betas of latent scaling (arXiv 2504.02922), over any batches.

    beta = argmin sum ||beta f w - y||^2 = sum f <w, y> / sum f^2 ||w||^2, for every latent and
    site, with w its decoder row at its strongest site. For the error, y is the site's error plus
    the latent's own part there, f w_site (for the strongest site this is the paper's; for the
    others, whose part is small, it is inferred). For the whole, y is the site's reconstruction.
    """

    def __init__(self, sae: AbstractSAE) -> None:
        self.rows = sae.W_dec.detach().float().split(sae.widths, dim=1)
        self.strongest = site_norms(sae.W_dec.detach(), sae.widths).argmax(dim=1)
        n, device = (sae.d_sae, len(sae.widths)), sae.W_dec.device
        self.squares = torch.zeros(sae.d_sae, dtype=torch.float64, device=device)
        self.error, self.whole = (
            torch.zeros(n, dtype=torch.float64, device=device) for _ in range(2)
        )

    def update(
        self, codes: SparseCodes, x: Float[Tensor, "row d"], x_hat: Float[Tensor, "row d"]
    ) -> None:
        """Add a batch."""
        on = codes.active
        row, latent, value = codes.rows()[on], codes.indices[on], codes.values[on].double()
        self.squares.index_add_(0, latent, value**2)
        size = max(1, NUMBERS_AT_ONCE // x.shape[1])
        widths = [part.shape[1] for part in self.rows]
        for site, (error, whole) in enumerate(
            zip((x - x_hat).split(widths, dim=1), x_hat.split(widths, dim=1), strict=True)
        ):
            for some in torch.arange(len(row), device=row.device).split(size):
                own, at = self._directions(latent[some]), row[some]
                for sums, wanted in ((self.error, error), (self.whole, whole)):
                    inner = (own * wanted[at]).sum(dim=1).double() * value[some]
                    sums[:, site].index_add_(0, latent[some], inner)

    def _directions(self, latent: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Each latent's decoder row at its strongest site."""
        out = self.rows[0].new_empty(len(latent), self.rows[0].shape[1])
        for site, rows in enumerate(self.rows):
            here = self.strongest[latent] == site
            out[here] = rows[latent[here]]
        return out

    def scales(self) -> tuple[Float[Tensor, "d_sae site"], Float[Tensor, "d_sae site"]]:
        """Beta on the errors and on the reconstructions; NaN for latents that never fired."""
        own = self._directions(torch.arange(len(self.squares), device=self.squares.device))
        inner = torch.stack([(own * part).sum(dim=1) for part in self.rows], dim=1).double()
        whole = self.squares * own.pow(2).sum(dim=1).double()
        error = self.error + self.squares[:, None] * inner
        return error / whole[:, None], self.whole / whole[:, None]


@torch.no_grad()
def measure_sharing(
    run: Run, *, n_tokens: int = 50_000, device: str | torch.device = "cpu"
) -> tuple[Sharing, Path]:
    """How far each latent of a crosscoder is of each site, and the file in the run that keeps it.

    Raises:
        UsageError: the run's SAE reads one site, its stores are missing, or another process writes
            the run.
    """
    run.check_finished()
    with writing(run.path):
        sae = run.load_sae(str(device))
        if len(sae.widths) < 2:
            raise UsageError(
                f"{run.path} is a {run.config.sae.variant} SAE of one site; `saelab diff` compares "
                "the sites of a crosscoder (--site A+B, or --beside STORE)."
            )
        found = _measured(run, sae, n_tokens)
        facts = {"sae_sha256": run.weights_sha256, "provenance": provenance()}
        return found, save_sharing(found, run.path, facts)


def _measured(run: Run, sae: AbstractSAE, n_tokens: int) -> Sharing:
    kept = held_back(run, n_tokens)
    equal = len(set(sae.widths)) == 1
    scaling, device = LatentScaling(sae) if equal else None, sae.W_dec.device
    each = [Reconstruction(width, sae.d_sae, device) for width in sae.widths]
    fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
    with progress("Shared latents", len(kept.chosen), "tokens") as bar:
        for part in kept.chosen.split(ROWS_AT_ONCE):
            x, _ = kept.at(part, device)
            codes = sae.encode(x)
            x_hat = sae.decode(codes)
            fired += codes.firing_counts()
            both = (rows.split(sae.widths, dim=1) for rows in (x, x_hat))
            for own, there, made in zip(each, *both, strict=True):
                own.update(there, made, codes)
            if scaling is not None:
                scaling.update(codes, x, x_hat)
            bar.advance(len(part))
    unknown = torch.full((sae.d_sae, len(sae.widths)), torch.nan)
    error, whole = (unknown, unknown) if scaling is None else scaling.scales()
    norm = site_norms(sae.W_dec.detach(), sae.widths)
    return Sharing(
        site_names(run, kept.source.store),
        tuple(float(own.results()["fvu"]) for own in each),
        len(kept.chosen),
        fired.cpu().numpy(),
        *(array.float().cpu().numpy() for array in (norm, error, whole)),
    )


def site_names(run: Run, store: ActivationStore) -> tuple[str, ...]:
    """What tells a run's sites apart: their hooks, their models, or both."""
    members = store.members(run.config.site)
    hooks = [hook for _, hook in members]
    if not store.beside:
        return tuple(hooks)
    stores = [of for of, _ in members]
    short = [_model(of.manifest.model, of.path, whole=False) for of in stores]
    if len(set(short)) < 1 + len(store.beside):
        short = [_model(of.manifest.model, of.path, whole=True) for of in stores]
    one = len(set(hooks)) == 1
    return tuple(m if one else f"{m} {hook}" for m, hook in zip(short, hooks, strict=True))


def _model(facts: dict[str, Any] | None, path: Path, *, whole: bool) -> str:
    name = str(path) if facts is None else str(facts["name"])
    return name if whole else Path(name).name

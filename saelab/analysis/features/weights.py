"""What the weights alone say about each latent: logits, neighbours, heads."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from jaxtyping import Float, Float32, Int
from numpy import ndarray
from torch import Tensor
from torch.nn import functional as F

from saelab.console import note, progress
from saelab.lm.predictions import rows_at_once
from saelab.lm.protocol import LanguageModel
from saelab.sae.base import AbstractSAE
from saelab.sae.decoder import atoms_of, dtype_of
from saelab.sites import Site

N_LOGITS = 12
N_NEIGHBOURS = 8
COSINES_AT_ONCE = 2**25
MOST_COMPARED = 2**18
"""With more latents, comparing all pairs takes longer than everything else together."""
MOST_READ = 2**33
"""Matrices with more numbers are not read whole for a few latents: that takes many minutes."""
LONG = 2**15
"""With more latents, progress is shown."""


def weight_arrays(sae: AbstractSAE, lm: LanguageModel, hook: str) -> dict[str, ndarray]:
    """Logits, decoder and encoder neighbours, and head weights if the site has heads.

    `hook` is the site that the SAE writes. An SAE without decoder rows has neighbours alone, and
    one of more than `MOST_COMPARED` latents has none.
    """
    compared = sae.d_sae <= MOST_COMPARED
    if not compared:
        note(
            f"features.h5 will tell no neighbours: {sae.d_sae:,} latents are "
            f"{sae.d_sae**2:.1e} pairs, and it compares up to {MOST_COMPARED:,} latents; in "
            "Python, run.load_sae().cosines()(slice(i, i + 1)) compares latent i with all."
        )
    arrays = nearest(sae.cosines(), sae.d_sae, "neighbours") if compared else {}
    if sae.config.decoder_problem is not None:
        return arrays
    arrays |= logit_arrays(sae.W_dec, dtype_of(sae), lm, hook)
    # A protocol's check sees no parameters since Python 3.12.
    if compared and isinstance(encoder := getattr(sae, "W_enc", None), Tensor):
        arrays |= neighbour_arrays(encoder.T, "encoder")
    if (site := Site.find(hook)) is not None and site.kind == "heads":
        arrays["heads/weights"] = head_weights(sae.W_dec, lm.info.n_heads)
    return arrays


def weight_arrays_of(
    sae: AbstractSAE, lm: LanguageModel, hook: str, latents: Int[Tensor, " some"]
) -> dict[str, ndarray]:
    """As `weight_arrays`, of some latents; their neighbours are among all, block by block.

    Weights of more than `MOST_READ` numbers tell none.
    """
    if sae.config.decoder_problem is not None:
        return {}
    rows, compared = atoms_of(sae, latents), sae.W_dec.numel() <= MOST_READ
    if not compared:
        note(
            f"There will be no neighbours: W_dec has {sae.W_dec.numel():.1e} numbers, and up to "
            f"{MOST_READ:.1e} are read for a few latents."
        )
    arrays = nearest_of_all(rows, latents, sae.W_dec, "neighbours") if compared else {}
    arrays |= logit_arrays(rows, rows.dtype, lm, hook)
    if compared and isinstance(encoder := getattr(sae, "W_enc", None), Tensor):
        columns = encoder.T[latents].to(rows.dtype)
        arrays |= nearest_of_all(columns, latents, encoder.T, "encoder")
    if (site := Site.find(hook)) is not None and site.kind == "heads":
        arrays["heads/weights"] = head_weights(rows, lm.info.n_heads)
    return arrays


def nearest_of_all(
    directions: Float[Tensor, "some d"],
    latents: Int[Tensor, " some"],
    every: Float[Tensor, "d_sae d"],
    group: str,
) -> dict[str, ndarray]:
    """As `nearest`, for some latents' directions among all."""
    n = min(N_NEIGHBOURS, len(every) - 1)
    unit = F.normalize(directions, dim=1)
    best, number = unit.new_zeros(len(unit), 0), latents.new_zeros(len(unit), 0)
    rows, first = max(1, COSINES_AT_ONCE // max(len(unit), every.shape[1])), 0
    for part in every.split(rows):
        cosine = unit @ F.normalize(part.to(unit.dtype), dim=1).T
        here = torch.arange(first, first + len(part), device=latents.device)
        cosine = torch.where(here == latents[:, None], 0, cosine)
        best = torch.cat([best, cosine], dim=1)
        number = torch.cat([number, here.expand(len(unit), -1)], dim=1)
        largest = best.abs().topk(min(n, best.shape[1]), dim=1).indices
        best, number = best.gather(1, largest), number.gather(1, largest)
        first += len(part)
    return {
        f"{group}/latents": number.int().cpu().numpy(),
        f"{group}/cosine": best.float().cpu().numpy(),
    }


def logit_arrays(
    atoms: Float[Tensor, "some d_out"], dtype: torch.dtype, lm: LanguageModel, hook: str
) -> dict[str, ndarray]:
    """For each decoder row, the tokens that it raises and lowers most (direct path).

    Empty for sites without a direct path to the logits.
    """
    n = min(N_LOGITS, lm.info.d_vocab)
    parts: dict[str, list[Tensor]] = {}
    for rows in atoms.split(rows_at_once(lm.info.d_vocab, lm.device)):
        effects = lm.logit_effects(hook, rows.to(dtype))
        if effects is None:
            return {}
        for side, largest in (("top", True), ("bottom", False)):
            values, tokens = effects.topk(n, dim=-1, largest=largest)
            parts.setdefault(f"logits/{side}_values", []).append(values.float())
            parts.setdefault(f"logits/{side}_tokens", []).append(tokens.int())
    return {name: torch.cat(values).cpu().numpy() for name, values in parts.items()}


def neighbour_arrays(directions: Float[Tensor, "d_sae d_in"], group: str) -> dict[str, ndarray]:
    """For each latent, the latents with the largest |cosine| between directions."""
    unit = F.normalize(directions.float(), dim=1)
    return nearest(lambda rows: unit[rows] @ unit.T, len(unit), group)


def nearest(
    cosines: Callable[[slice], Float[Tensor, "i d_sae"]], d_sae: int, group: str
) -> dict[str, ndarray]:
    """For each latent, the latents with the largest |cosine|; `cosines` gives some rows of them."""
    n = min(N_NEIGHBOURS, d_sae - 1)
    rows = max(1, COSINES_AT_ONCE // d_sae)
    latents, values = [], []
    # Every latent is compared with every other one: a million of them takes long.
    with progress(f"Nearest ({group})", d_sae, "latents") if d_sae > LONG else nullcontext() as bar:
        for first in range(0, d_sae, rows):
            cosine = cosines(slice(first, min(first + rows, d_sae)))
            own = torch.arange(len(cosine), device=cosine.device)
            cosine[own, own + first] = 0
            largest = cosine.abs().topk(n, dim=1).indices
            latents.append(largest.int())
            values.append(cosine.gather(1, largest).float())
            if bar is not None:
                bar.advance(len(cosine))
    return {
        f"{group}/latents": torch.cat(latents).cpu().numpy(),
        f"{group}/cosine": torch.cat(values).cpu().numpy(),
    }


def head_weights(W_dec: Float[Tensor, "d_sae d_in"], n_heads: int) -> Float32[ndarray, "d_sae h"]:
    """Each head's share of a latent's decoder row: its part's norm over the sum of all norms.

    The row consists of the heads' outputs one after the other (arXiv 2406.17759, released code).
    """
    norms = W_dec.float().unflatten(1, (n_heads, -1)).norm(dim=2)
    total = norms.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (norms / total).cpu().numpy()

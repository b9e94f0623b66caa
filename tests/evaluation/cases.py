"""SAEs with given weights and codes with given truth, which several files of tests share."""

from typing import TypeVar

import numpy as np
import torch

from saelab.activations.corpus import Contexts
from saelab.evaluation.rows import Rows, Skipped
from saelab.sae.abs_topk import AbsTopKConfig
from saelab.sae.topk import TopKConfig
from saelab.types import SparseCodes

Result = TypeVar("Result")


def measured(result: Result | Skipped | None) -> Result:
    assert result is not None
    assert not isinstance(result, Skipped)
    return result


def reason(result: object) -> str:
    assert isinstance(result, Skipped)
    return result.reason


def sae_with(W_dec: torch.Tensor, b_dec: torch.Tensor | None = None, *, signed: bool = False):
    """An SAE with these decoder rows, which encodes with their transpose; every latent may fire."""
    d_sae, d_in = W_dec.shape
    config = AbsTopKConfig if signed else TopKConfig
    sae = config(d_sae=d_sae, k=d_sae).build(d_in)
    with torch.no_grad():
        sae.W_dec.copy_(W_dec)
        sae.W_enc.copy_(W_dec.T)
        sae.b_enc.zero_()
        sae.b_dec.copy_(torch.zeros(d_in) if b_dec is None else b_dec)
    return sae


def sparse(dense: torch.Tensor, *, ragged: bool = False) -> SparseCodes:
    """The codes of a dense matrix: its non-zeros alone, rectangular or ragged."""
    row, latent = dense.nonzero(as_tuple=True)
    counts = (dense != 0).sum(1)
    codes = SparseCodes(dense[row, latent], latent, dense.shape[1], counts.cumsum(0) - counts)
    return codes if ragged else codes.rectangular()


def permuted(codes: SparseCodes, order: torch.Tensor) -> SparseCodes:
    """The codes of the SAE whose latent j is this one's latent order[j]."""
    place = order.argsort()
    return SparseCodes(codes.values, place[codes.indices], codes.d_sae, codes.offsets)


def flipped(codes: SparseCodes, latents: torch.Tensor) -> SparseCodes:
    """The codes after some latents were turned around."""
    sign = torch.where(torch.isin(codes.indices, latents), -1.0, 1.0)
    return SparseCodes(codes.values * sign, codes.indices, codes.d_sae, codes.offsets)


def rows_of(x, codes, labels=None, names=(), token=None, fit=None) -> Rows:
    n = len(x)
    return Rows(
        x=x,
        codes=codes.rectangular(),
        token=torch.zeros(n, dtype=torch.long) if token is None else token,
        fit=torch.arange(n) % 2 == 0 if fit is None else fit,
        labels=labels,
        label_names=names,
    )


def random_dense(n: int, d_sae: int, *, seed: int = 0, signed: bool = False, rate: float = 0.3):
    draw = torch.Generator().manual_seed(seed)
    values = torch.rand(n, d_sae, generator=draw) + 0.1
    if signed:
        values = values * (1 - 2 * torch.randint(2, (n, d_sae), generator=draw))
    return values * (torch.rand(n, d_sae, generator=draw) < rate)


def contexts_of(tokens: torch.Tensor) -> Contexts:
    return Contexts(tokens.numpy(), np.arange(len(tokens)))

"""The rows of a unit: forward passes (and backward passes for gradients) over its contexts."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from saelab.activations.columns import Columns
from saelab.activations.corpus import PADDING, Contexts
from saelab.activations.format import SiteSpec
from saelab.lm.protocol import ActivationSource


def row_mask(lm: ActivationSource, tokens: Int[ndarray, "*shape"]) -> Bool[ndarray, "*shape"]:
    """Which positions become rows: all but special tokens and padding."""
    return ~np.isin(tokens, [PADDING, *lm.info.special_token_ids])


def model_input(tokens: Int[ndarray, "context pos"]) -> Int[Tensor, "context pos"]:
    """Token ids a model accepts. Padding stands at the end, where no real token can see it."""
    return torch.from_numpy(np.where(tokens == PADDING, 0, tokens).astype(np.int64))


def unit_rows(
    lm: ActivationSource,
    sites: Sequence[SiteSpec],
    contexts: Contexts,
    *,
    dtype: torch.dtype,
    batch_size: int,
    advance: Callable[[int], object],
) -> dict[str, Float[Tensor, "row d_in"]]:
    """The rows of these contexts at every site, in reading order, as `dtype` in CPU memory.

    On a GPU the copies run behind the forward passes, into pinned memory. `advance` is called with
    the positions of each batch.
    """
    mask = row_mask(lm, contexts.tokens)
    on_gpu = lm.device.type == "cuda"
    out = {
        site.name: torch.empty(int(mask.sum()), site.d_in, dtype=dtype, pin_memory=on_gpu)
        for site in sites
    }
    done = 0
    for start in range(0, len(mask), batch_size):
        tokens = contexts.tokens[start : start + batch_size]
        kept = torch.from_numpy(mask[start : start + batch_size].ravel().nonzero()[0])
        kept_there = kept.to(lm.device)
        for name, values in _values(lm, tokens, sites).items():
            rows = values.flatten(0, 1).index_select(0, kept_there).to(dtype)
            out[name][done : done + len(kept)].copy_(rows, non_blocking=True)
        done += len(kept)
        advance(tokens.size)
    if on_gpu:
        torch.cuda.synchronize(lm.device)
    return out


def seconds_per_position(
    lm: ActivationSource, sites: Sequence[SiteSpec], contexts: Contexts
) -> float:
    """What one position of these contexts takes, as one batch; a smaller one goes before."""
    _values(lm, contexts.tokens[:1], sites)
    start = time.perf_counter()
    _values(lm, contexts.tokens, sites)
    if lm.device.type == "cuda":
        torch.cuda.synchronize(lm.device)
    return (time.perf_counter() - start) / contexts.tokens.size


def _values(
    lm: ActivationSource, tokens: Int[ndarray, "context pos"], sites: Sequence[SiteSpec]
) -> Mapping[str, Float[Tensor, "context pos d_in"]]:
    """One batch at every site, by the site's name."""
    hooks = list(dict.fromkeys(site.hook for site in sites))
    if all(site.kind == "activation" for site in sites):
        return lm.capture(model_input(tokens), hooks)
    real = torch.from_numpy(tokens != PADDING)
    activations, gradients = lm.gradients(model_input(tokens), hooks, real)
    found = {"activation": activations, "gradient": gradients}
    return {site.name: found[site.kind][site.hook] for site in sites}


def unit_columns(lm: ActivationSource, contexts: Contexts, first: int) -> Columns:
    """The columns of a unit whose first context has this index, in reading order."""
    mask = row_mask(lm, contexts.tokens)
    context, position = mask.nonzero()
    padding = int((contexts.tokens == PADDING).sum())
    return Columns(
        token=contexts.tokens[mask],
        position=position,
        context=context + first,
        document=contexts.document[context],
        contexts=contexts.tokens,
        labels=None if contexts.labels is None else contexts.labels[mask],
        excluded={"padding": padding, "special": int((~mask).sum()) - padding},
    )

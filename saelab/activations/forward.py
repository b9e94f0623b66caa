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
    """The rows of these contexts at every site, in reading order, as `dtype` on the model's device.

    A GPU is asked for all of them and not waited for. `advance` is called with the positions of
    each batch.
    """
    mask = row_mask(lm, contexts.tokens)
    tokens, real = _sent(model_input(contexts.tokens), lm), contexts.tokens != PADDING
    kept = _sent(torch.from_numpy(mask.ravel().nonzero()[0]), lm)
    out = {
        site.name: torch.empty(len(kept), site.d_in, dtype=dtype, device=lm.device)
        for site in sites
    }
    done = 0
    for start in range(0, len(mask), batch_size):
        part = slice(start, start + batch_size)
        stop = done + int(mask[part].sum())
        own = kept[done:stop] - start * mask.shape[1]
        for name, values in _values(lm, tokens[part], real[part], sites).items():
            out[name][done:stop].copy_(values.flatten(0, 1).index_select(0, own))
        done = stop
        advance(real[part].size)
    return out


def _sent(tensor: Int[Tensor, "*shape"], lm: ActivationSource) -> Int[Tensor, "*shape"]:
    """The same on the model's device; a copy to a GPU waits for nothing that is queued there."""
    if lm.device.type != "cuda":
        return tensor.to(lm.device)
    return tensor.pin_memory().to(lm.device, non_blocking=True)


def seconds_per_position(
    lm: ActivationSource, sites: Sequence[SiteSpec], contexts: Contexts
) -> float:
    """What one position of these contexts takes, as one batch; a smaller one goes before."""
    tokens, real = model_input(contexts.tokens), contexts.tokens != PADDING
    _values(lm, tokens[:1], real[:1], sites)
    start = time.perf_counter()
    _values(lm, tokens, real, sites)
    if lm.device.type == "cuda":
        torch.cuda.synchronize(lm.device)
    return (time.perf_counter() - start) / contexts.tokens.size


def _values(
    lm: ActivationSource,
    tokens: Int[Tensor, "context pos"],
    real: Bool[ndarray, "context pos"],
    sites: Sequence[SiteSpec],
) -> Mapping[str, Float[Tensor, "context pos d_in"]]:
    """One batch at every site, by the site's name; `real` positions are no padding."""
    hooks = list(dict.fromkeys(site.hook for site in sites))
    if all(site.kind == "activation" for site in sites):
        return lm.capture(tokens, hooks)
    activations, gradients = lm.gradients(tokens, hooks, torch.from_numpy(real))
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

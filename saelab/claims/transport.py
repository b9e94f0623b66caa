"""Activation Transport Operators (arXiv 2508.17540): short leaps carry most, early ones more."""

from collections.abc import Callable
from statistics import fmean

import numpy as np

from saelab.activations.store import ActivationStore
from saelab.analysis.transport.measure import measure_transport
from saelab.analysis.transport.options import TransportOptions
from saelab.analysis.transport.records import SiteTransport, SpliceName
from saelab.analysis.transport.rows import MOST_GROUPS
from saelab.claims.claim import Claim
from saelab.claims.outcome import (
    RANDOM_DIRECTIONS,
    RANDOM_LATENTS,
    Estimate,
    Outcome,
    over_seeds,
    ratios,
)
from saelab.claims.setting import Setting
from saelab.sae.topk import TopKConfig
from saelab.training.recipes import short_run

N_ROWS, N_SPLICED = 60_000, 4000
TOLD_APART = 0.1
"""At least this share of the latents is carried, and as many are computed."""
SMALL = 0.9
"""CE recovered from here on is a small increase of the perplexity."""

Leaps = dict[str, SiteTransport]


def _measure(setting: Setting) -> Outcome:
    """R² of latents over one block and over two, and of whole sites over the first and last."""
    subject = setting.subject
    last = subject.lm.info.n_layers - 1
    at = int(subject.sites.residual.split(".")[1])
    layers = {"near": (at - 1, at), "far": (at - 2, at), "first": (0, 1), "last": (last - 1, last)}
    path = subject.store(*(_site(n) for n in sorted({n for pair in layers.values() for n in pair})))
    runs = setting.runs(
        subject.fitted({"topk": short_run(path, _site(at), TopKConfig(d_sae=256, k=12))})
    )["topk"]
    leaps = []
    for seed, run in zip(setting.seeds, runs, strict=True):
        options = TransportOptions(
            from_=tuple(_site(pair[0]) for pair in layers.values()),
            to=tuple(_site(pair[1]) for pair in layers.values()),
            n_tokens=N_ROWS,
            rank=(subject.lm.info.d_model,),
            n_splice=N_SPLICED,
            seed=seed,
        )
        found = measure_transport(run, options, store=ActivationStore(path), lm=subject.lm)
        by_sites = {(one.earlier, one.later): one for one in found}
        leaps.append({name: by_sites[_site(a), _site(b)] for name, (a, b) in layers.items()})
    return _outcome(leaps)


def _outcome(leaps: list[Leaps]) -> Outcome:
    def each(leap: str, figure: Callable[[SiteTransport], float]) -> list[float]:
        return [figure(one[leap]) for one in leaps]

    near, far = (each(leap, lambda one: _median(one.best)) for leap in ("near", "far"))
    depth = ratios(each("last", _whole), each("first", _whole))
    runs_on, copied = (_recovered(leaps, name) for name in ("transported", "identity"))
    shares = {
        name: over_seeds(each("near", lambda one, name=name: one.count(name) / len(one)))
        for name in ("carried", "computed")
    }
    fading = over_seeds([b - a for a, b in zip(near, far, strict=True)])
    return Outcome(
        figures={
            "median R² of latents over one block": over_seeds(near),
            "median R² of latents over two blocks": over_seeds(far),
            "R² of the whole site, last block / first": over_seeds(depth),
            "CE recovered on transported activations, one block": runs_on,
            "CE recovered on the earlier activations, one block": copied,
            **{f"share of latents {name}, one block": share for name, share in shares.items()},
        },
        holds={
            "transport fades with the leap": fading.below(0),
            "earlier layers carry more": over_seeds(depth).below(1),
            f"the model recovers {SMALL:.0%} of its CE on transported activations": runs_on.above(
                SMALL
            ),
            "it runs better on them than on the earlier activations": runs_on.value > copied.value,
            "some latents are carried and others computed": all(
                share.above(TOLD_APART) for share in shares.values()
            ),
        },
        reason="Each block of the tiny model is a quarter of its depth, so one leap is a long one.",
        controls={
            RANDOM_DIRECTIONS: over_seeds(each("near", lambda one: _median(one.direction))),
            RANDOM_LATENTS: over_seeds(each("near", lambda one: _median(one.other))),
        },
    )


def _site(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values))


def _whole(one: SiteTransport) -> float:
    return float(one.curves["r2"][-1])


def _recovered(leaps: list[Leaps], name: SpliceName) -> Estimate:
    """CE recovered over one block; all seeds read the same text, so its interval is the text's."""
    found = [splice for one in leaps if (splice := one["near"].spliced(name)) is not None]
    ends = [
        fmean(splice.recovered if end is None else end for splice, end in pairs)
        for pairs in (
            [(splice, splice.recovered) for splice in found],
            [(splice, splice.low) for splice in found],
            [(splice, splice.high) for splice in found],
        )
    ]
    return Estimate(*ends, n=MOST_GROUPS, over="groups of documents")


TRANSPORT = Claim(
    "transport",
    "2508.17540",
    "A linear map carries latents over short leaps and in early layers; the model runs on it.",
    "plots only (Gemma 2 2B, Gemma Scope, 250,000 tokens)",
    "tiny, blocks.0 to 3.hook_resid_post, 256 latents at block 2",
    _measure,
    with_model=True,
    intervenes=True,
)

"""Collecting features: what every latent fires on and what it writes."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from numpy import ndarray

from saelab.activations.store import ActivationStore
from saelab.analysis.feature_file import pack_vocabulary, write_features
from saelab.analysis.features.coactivation import MOST_FIRINGS
from saelab.analysis.features.codes import RecordedCodes
from saelab.analysis.features.evidence import evidence_arrays
from saelab.analysis.features.options import FeatureOptions
from saelab.analysis.features.plan import features_plan
from saelab.analysis.features.reading import forget_codes, record_codes
from saelab.analysis.features.token_index import N_LATENTS
from saelab.analysis.features.weights import weight_arrays, weight_arrays_of
from saelab.analysis.records import Features
from saelab.config import UsageError
from saelab.console import note
from saelab.host.host import Host
from saelab.host.text import corpus_of
from saelab.lm.protocol import LanguageModel
from saelab.lock import writing
from saelab.provenance import provenance
from saelab.training.run import Run
from saelab.training.run_paths import CHOSEN_FEATURES


@torch.no_grad()
def collect_features(
    run: Run, lm: LanguageModel, options: FeatureOptions | None = None
) -> Features:
    """Stream text through the model and the SAE once; write the run's features.h5.

    Codes are kept on disk (features.partial in the run; 12 bytes per firing and per near miss)
    until features.h5 is complete. After an interruption the same call continues, and gives the same
    file.

    Raises:
        UsageError: `lm` is not the run's model, the text is missing, there is an unfinished pass
            with other options, or another process writes the run.
    """
    options = options or FeatureOptions()
    with writing(run.path):
        host = Host.of_run(run, lm)
        lm = host.lm
        if (reason := lm.why_no_logits(host.writes)) is not None:
            note(f"features.h5 will tell no logits: {reason}")
        features_plan(run, lm, host.sae, corpus_of(run, lm, "train"), options).announce()
        codes = record_codes(run, host, options)
        if not codes.n_rows:
            forget_codes(run)
            raise UsageError("The text has no tokens to collect features on.")
        arrays, facts = _evidence(run, lm, codes, options)
        arrays |= weight_arrays(host.sae, lm, host.writes)
        write_features(run.features_path, arrays, facts)
        forget_codes(run)
        return Features(run.path)


@torch.no_grad()
def collect_chosen(
    run: Run, lm: LanguageModel, latents: Sequence[int], options: FeatureOptions | None = None
) -> Features:
    """As `collect_features`, for some latents alone: writes the run's chosen_features.h5.

    Where each latent fires by its own threshold, other latents cost nothing. There are no near
    misses, latents on the same tokens, or detectors of tokens: these need all latents.

    Raises:
        UsageError: as there, or there is no such latent.
    """
    options = options or FeatureOptions()
    latents = check_latents(run, latents)
    with writing(run.path):
        host = Host.of_run(run, lm)
        lm = host.lm
        corpus = corpus_of(run, lm, "train")
        features_plan(run, lm, host.sae, corpus, options, latents).announce()
        codes = record_codes(run, host, options, latents)
        if not codes.n_rows:
            forget_codes(run, latents)
            raise UsageError("The text has no tokens to collect features on.")
        arrays, facts = _evidence(run, lm, codes, options)
        arrays = {n: a for n, a in arrays.items() if n.partition("/")[0] not in OF_ALL}
        numbers = torch.tensor(latents, device=lm.device)
        arrays |= weight_arrays_of(host.sae, lm, host.writes, numbers)
        arrays["latent/number"] = np.array(latents, dtype=np.int64)
        write_features(run.path / CHOSEN_FEATURES, arrays, facts | {"of_latents": host.sae.d_sae})
        forget_codes(run, latents)
        return Features(run.path, chosen=True)


def check_latents(run: Run, latents: Sequence[int]) -> tuple[int, ...]:
    """The latents in order, each once.

    Raises:
        UsageError: none is given, or the run has no such latent.
    """
    d_sae = run.config.sae.d_sae
    wrong = [latent for latent in latents if not 0 <= latent < d_sae]
    if wrong or not latents:
        named = f"latent {wrong[0]}" if wrong else "latents"
        raise UsageError(f"There is no {named}; {run.path} has 0 to {d_sae - 1}.")
    return tuple(sorted(set(latents)))


OF_ALL = ("coactive", "index")
"""Groups that compare latents, and so need all of them."""


def _evidence(
    run: Run, lm: LanguageModel, codes: RecordedCodes, options: FeatureOptions
) -> tuple[dict[str, ndarray], dict[str, Any]]:
    """The datasets that the text and the tokenizer decide, and the file's facts."""
    limit, massive = massive_rows(run, codes)
    arrays = evidence_arrays(codes, options, lm.info.d_vocab, massive)
    table, ids = lm.tokenizer.table, range(lm.info.d_vocab)
    written = {i: said for i, said in table.written.items() if i in ids}
    arrays |= pack_vocabulary([table.name(i) for i in ids], written)
    known = None if massive is None else {"above_norm": limit, "rows": int(massive.sum())}
    return arrays, _facts(run, lm, codes, options) | {"massive": known}


def collected(run: Run, options: FeatureOptions) -> Features | None:
    """The run's features, if they were collected from these weights with these options.

    The batch size is no matter: by default it depends on the device.

    Raises:
        UsageError: features.h5 is damaged.
    """
    if not run.features_path.is_file():
        return None
    features = Features(run.path)
    facts, wanted = features.file.facts, asdict(options)
    there = facts.get("options")
    alike = isinstance(there, dict) and wanted == there | {"batch_size": options.batch_size}
    return features if alike and facts.get("sae_sha256") == run.weights_sha256 else None


def massive_rows(
    run: Run, codes: RecordedCodes
) -> tuple[float | None, Bool[ndarray, " row"] | None]:
    """The norm above which activations are massive, by the store's rule, and the massive rows.

    The limit is None if there are none. The rows are None if they are unknown because the store is
    missing. A run that left massive rows out in training has none among its rows.
    """
    none = np.zeros(codes.n_rows, dtype=bool)
    if run.domain.max_norm is not None:
        return run.domain.max_norm, none
    try:
        # At several sites there is no one norm.
        limit = None
        if run.config.n_sites == 1:
            limit = ActivationStore(run.store_path()).outliers(run.config.site).max_norm
    except UsageError:
        return None, None
    if limit is None:
        return None, none
    return limit, None if codes.norm is None else codes.norm > limit


def _facts(
    run: Run, lm: LanguageModel, codes: RecordedCodes, options: FeatureOptions
) -> dict[str, Any]:
    record = run.provenance()
    return {
        "hook": run.config.site,
        "target_hook": run.config.written_site,
        "variant": run.config.sae.variant,
        "sae": run.config.sae.model_dump(mode="json"),
        "model": record["model"],
        "corpus": record["corpus"],
        "split": "train",
        "context_length": codes.text.length,
        "left_out": {"padding": True, **run.domain.facts()},
        "n_tokens": codes.n_rows,
        "n_contexts": codes.n_contexts,
        "reach": options.reach,
        "seed": options.seed,
        "options": asdict(options),
        "exact": EXACT,
        "sampled": SAMPLED,
        "sae_sha256": run.weights_sha256,
        "device": str(lm.device),
        "training": {name: record.get(name) for name in ("created", "commit", "activations")},
        "provenance": provenance(),
    }


EXACT = (
    "counts, moments, histograms, quantiles and populations of strata, top and negative examples, "
    "decoder and encoder neighbours, logits, head weights, counts and means of the token index"
)
SAMPLED = (
    "strata (each stratum's examples fairly, without replacement), random (of all firings), silent "
    "(one context from each of equal parts of the silent ones, a random token of it); coactive: of "
    f"latents with more than {MOST_FIRINGS} firings that many at random; near_miss: candidates are "
    "the first near_miss_ranks latents below each token's selection; index: of each token the "
    f"{N_LATENTS} latents with the largest F1"
)

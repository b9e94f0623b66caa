"""Features: what every latent fires on and what it writes, collected once and stored."""

from dataclasses import asdict
from typing import Any

import torch

from saelab.analysis.feature_file import pack_vocabulary, write_features
from saelab.analysis.features.coactivation import MOST_FIRINGS
from saelab.analysis.features.codes import RecordedCodes
from saelab.analysis.features.evidence import evidence_arrays
from saelab.analysis.features.options import FeatureOptions
from saelab.analysis.features.reading import forget_codes, record_codes
from saelab.analysis.features.token_index import N_LATENTS
from saelab.analysis.features.weights import weight_arrays
from saelab.analysis.records import Features
from saelab.config import UsageError
from saelab.files import sha256_file
from saelab.lm.protocol import LanguageModel
from saelab.provenance import provenance
from saelab.training.run import Run


@torch.no_grad()
def collect_features(
    run: Run, lm: LanguageModel, options: FeatureOptions | None = None
) -> Features:
    """Stream text through the model and the SAE once; write the run's features.h5.

    The codes wait on disk (features.partial in the run, 12 bytes a firing and 12 a near miss) until
    features.h5 is whole; the same call after an interruption continues and gives the same file.

    Raises:
        UsageError: `lm` is not the run's model, the text is gone, or an unfinished pass with other
            options is in the way.
    """
    options = options or FeatureOptions()
    sae = run.load_sae(str(lm.device))
    codes = record_codes(run, lm, sae, options)
    if not codes.n_rows:
        forget_codes(run)
        raise UsageError("The text has no tokens to collect features on.")
    arrays = evidence_arrays(codes, options, lm.info.d_vocab)
    arrays |= weight_arrays(sae, lm, run.config.written_site)
    table, ids = lm.tokenizer.table, range(lm.info.d_vocab)
    written = {i: said for i, said in table.written.items() if i in ids}
    arrays |= pack_vocabulary([table.name(i) for i in ids], written)
    write_features(run.features_path, arrays, _facts(run, lm, codes, options))
    forget_codes(run)
    return Features(run.path)


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
        "left_out": {"padding": True, "special_token_ids": list(lm.info.special_token_ids)},
        "n_tokens": codes.n_rows,
        "n_contexts": codes.n_contexts,
        "reach": options.reach,
        "seed": options.seed,
        "options": asdict(options),
        "exact": EXACT,
        "sampled": SAMPLED,
        "sae_sha256": sha256_file(run.weights),
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

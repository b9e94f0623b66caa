"""Features as the JSON of Neuronpedia's dashboards: `batch-0.json`, `batch-1.json`, ...

SAEDashboard's runner for Neuronpedia writes this layout, and Neuronpedia's converter to its upload
reads it (SAEDashboard 0.8): an object with `model_id`, `layer`, `sae_set` and `features`. The bin
of an activation is (-1, maximum, -1) for the strongest examples; for the others its limits, and the
share of the latent's firings within them. What saelab does not measure is an empty list: alignment
and correlation with neurons and latents, and the histogram of all logits.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from saelab.analysis.records import Example, Features, LatentRecord
from saelab.config import UsageError
from saelab.files import atomic_write, check_only
from saelab.sites import Site
from saelab.training.run import Run

PER_FILE = 256
NOT_MEASURED = (
    *(f"neuron_alignment_{name}" for name in ("indices", "values", "l1")),
    *(f"correlated_neurons_{name}" for name in ("indices", "l1", "pearson")),
    *(f"correlated_features_{name}" for name in ("indices", "l1", "pearson")),
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
)


def write_neuronpedia(run: Run, directory: Path, latents: Sequence[int] = ()) -> list[Path]:
    """Write the dashboards of `latents`, or of all, to a new directory; returns the files.

    Raises:
        UsageError: the run has no features or belongs to no layer, a latent does not exist, or
            `directory` holds other
            files.
    """
    features = Features.of(run.path)
    site = Site.find(str(run.options["site"]))
    if site is None or site.layer is None:
        raise UsageError(
            f"{run.path} reads {run.options['site']}, and Neuronpedia needs the site of one layer."
        )
    for latent in latents:
        features.place(latent)
    check_only(directory, lambda name: re.fullmatch(r"batch-\d+\.json", name) is not None)
    told = {
        "model_id": re.sub(r"[^a-z0-9_-]", "-", Path(run.model()["name"]).name.lower()),
        "layer": site.layer,
        "sae_set": f"{re.sub(r'[^a-z0-9]+', '-', site.part)}-{run.name}".lower(),
    }
    chosen = sorted(set(latents)) or features.latents
    paths = []
    for start in range(0, len(chosen), PER_FILE):
        part = chosen[start : start + PER_FILE]
        values = told | {"features": [dashboard(features, latent) for latent in part]}
        paths.append(directory / f"batch-{start // PER_FILE}.json")
        atomic_write(paths[-1], json.dumps(values, allow_nan=False).encode())
    return paths


def dashboard(features: Features, latent: int) -> dict[str, Any]:
    """One latent's evidence under Neuronpedia's names."""
    record, facts = features[latent], features.file.facts
    middles = (record.histogram_edges[:-1] + record.histogram_edges[1:]) / 2
    return {
        "feature_index": latent,
        **{name: [] for name in NOT_MEASURED},
        "neg_str": [token for token, _ in record.lowered],
        "neg_values": _short(effect for _, effect in record.lowered),
        "pos_str": [token for token, _ in record.raised],
        "pos_values": _short(effect for _, effect in record.raised),
        "frac_nonzero": record.density,
        "freq_hist_data_bar_values": _short(middles.tolist()),
        "freq_hist_data_bar_heights": record.histogram.tolist(),
        "n_prompts_total": int(facts["n_contexts"]),
        "n_tokens_in_prompt": int(facts["context_length"]),
        "dataset": str((facts.get("corpus") or {}).get("source", "")),
        "decoder_weights_dist": _short(record.head_weights),
        "activations": list(_activations(record)),
    }


def _activations(record: LatentRecord) -> Iterator[dict[str, Any]]:
    for example in record.examples.get("top", []):
        yield _activation(example, -1.0, record.max, -1.0)
    kept = iter(record.examples.get("strata", []))
    for part in record.strata:
        share = part.population / record.n_fired if record.n_fired else 0.0
        for _ in range(min(len(part.slots), part.population)):
            yield _activation(next(kept), part.low, part.high, share)


def _activation(example: Example, low: float, high: float, share: float) -> dict[str, Any]:
    return {
        "bin_min": low,
        "bin_max": high,
        "bin_contains": share,
        "qualifying_token_index": example.peak,
        "tokens": [token.text for token in example.tokens],
        "values": _short(token.activation for token in example.tokens),
    }


def _short(values: Iterable[float]) -> list[float]:
    """Numbers with five significant digits."""
    return [float(f"{value:.5g}") for value in values]

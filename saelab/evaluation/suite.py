"""The costlier measurements of an evaluation, each by its name."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

from saelab.activations.corpus import Corpus
from saelab.console import progress
from saelab.evaluation.ablation import AblationSparsity, AblationTokens, ablation_problem
from saelab.evaluation.absorption_tasks import Absorption, feature_absorption
from saelab.evaluation.mdl import DescriptionLength, description_length
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.probing import SparseProbing, sparse_probing
from saelab.evaluation.rows import Rows, Skipped
from saelab.evaluation.uniformity import Uniformity, UniformityTokens, uniformity_problem
from saelab.host.host import Host
from saelab.host.text import read_text, stream

Measured = DescriptionLength | Uniformity | SparseProbing | Absorption | AblationSparsity


@dataclass(frozen=True)
class Inputs:
    """What the measurements read.

    Attributes:
        rows: a sample of held-out rows.
        corpus: the held-out text.
    """

    host: Host
    corpus: Corpus
    rows: Rows
    options: EvaluateOptions


def measure_suite(
    inputs: Inputs,
) -> tuple[dict[str, Measured], dict[str, str], dict[str, float]]:
    """What was measured, why the rest was not, and how many seconds each took; all by name."""
    found: dict[str, Measured] = {}
    skipped: dict[str, str] = {}
    seconds: dict[str, float] = {}
    with progress("Full suite", len(MEASUREMENTS), "measurements") as bar:
        for name, measure in MEASUREMENTS.items():
            started = perf_counter()
            result = measure(inputs)
            seconds[name] = perf_counter() - started
            if isinstance(result, Skipped):
                skipped[name] = result.reason
            else:
                found[name] = result
            bar.advance(1, name.replace("_", " "))
    return found, skipped, seconds


def _description_length(inputs: Inputs) -> DescriptionLength | Skipped:
    tolerance = inputs.options.fvu_tolerance
    return description_length(inputs.rows, inputs.host.sae, tolerance=tolerance)


def _probing(inputs: Inputs) -> SparseProbing | Skipped:
    return sparse_probing(inputs.rows)


def _absorption(inputs: Inputs) -> Absorption | Skipped:
    text_of = inputs.host.lm.tokenizer.token
    return feature_absorption(inputs.rows, inputs.host.sae, text_of, seed=inputs.options.seed)


def _uniformity(inputs: Inputs) -> Uniformity | Skipped:
    host, options = inputs.host, inputs.options
    if problem := uniformity_problem(host.writes):
        return Skipped(problem)
    tokens = UniformityTokens(host.lm, host.sae, host.writes, seed=options.seed, source=host.reads)
    texts = read_text(host, inputs.corpus, n_tokens=options.n_tokens, batch_size=options.contexts)
    for text in texts:
        tokens.update(text, n_tokens=options.n_uniformity)
        if tokens.n_tokens >= options.n_uniformity:
            break
    return tokens.results()


def _ablation(inputs: Inputs) -> AblationSparsity | Skipped:
    host, options = inputs.host, inputs.options
    if problem := ablation_problem(host.writes):
        return Skipped(problem)
    tokens = AblationTokens(
        host.lm,
        host.sae,
        host.writes,
        n_latents=options.n_ablated_latents,
        reach=options.reach,
    )
    draw = torch.Generator().manual_seed(options.seed)
    batches = stream(host, inputs.corpus, n_tokens=options.n_tokens, batch_size=options.contexts)
    for batch in batches:
        tokens.update(batch, n_tokens=options.n_ablated_tokens, draw=draw)
        if tokens.n_tokens >= options.n_ablated_tokens:
            break
    return tokens.results()


MEASUREMENTS: dict[str, Callable[[Inputs], Measured | Skipped]] = {
    "description_length": _description_length,
    "uniformity": _uniformity,
    "probing": _probing,
    "absorption": _absorption,
    "ablation": _ablation,
}
"""In the order in which they are made and printed."""

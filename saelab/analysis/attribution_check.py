"""Whether attribution is exact on a model: sums of what every part gives, on random SAEs."""

import torch

from saelab.analysis.attention.dfa import direct_feature_attribution
from saelab.analysis.attention.qk import score_pairs
from saelab.analysis.attention.recursive import source_attribution
from saelab.analysis.circuits.frozen import Frozen, freeze
from saelab.analysis.circuits.graph import direct_inputs
from saelab.analysis.circuits.targets import logit_target
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.lm.bridge import BridgeLanguageModel
from saelab.lm.conformance import Finding
from saelab.lm.linear.paths import soft_capped
from saelab.sae.topk import TopKConfig

TOLERANCE = 1e-6
"""Relative; sums are made in float64."""
SCORES_TOLERANCE = 1e-3
"""Of differences of scores, whose logarithms a model's softmax rounds as it computes."""
D_SAE, K = 32, 4


@torch.no_grad()
def attribution_findings(lm: BridgeLanguageModel) -> list[Finding]:
    """DFA, RDFA, QK pairs and a graph's rows, over a random SAE on the heads of the last layer."""
    checks = {
        "DFA sums to the latents": (_dfa_error, TOLERANCE),
        "RDFA sums to the sources' parts": (_rdfa_error, TOLERANCE),
        "QK pairs sum to the scores": (_scores_error, SCORES_TOLERANCE),
        "graph rows sum to the logit": (_graph_error, TOLERANCE),
    }
    try:
        frozen = _frozen(lm)
    except UsageError as refusal:
        return [Finding("model", c, None, limit, str(refusal)) for c, (_, limit) in checks.items()]
    return [
        Finding("model", check, measure(frozen), limit)
        for check, (measure, limit) in checks.items()
    ]


def _frozen(lm: BridgeLanguageModel) -> Frozen:
    site = f"blocks.{lm.info.n_layers - 1}.attn.hook_z"
    generator = torch.Generator().manual_seed(0)
    sae = TopKConfig(d_sae=D_SAE, k=K).build(lm.width(site), generator)
    sae = sae.to(lm.device).eval().requires_grad_(requires_grad=False)
    tokens = torch.randint(lm.info.d_vocab, (8,), generator=generator)
    return freeze(lm, [Host.at(lm, sae, site)], tokens)


def _dfa_error(frozen: Frozen) -> float:
    last = len(frozen.record.layers) - 1
    return max(
        abs(float(one.by_source_head.sum()) + one.constant - one.value) / abs(one.value)
        for one in direct_feature_attribution(frozen, last, frozen.n_pos - 1)
    )


def _rdfa_error(frozen: Frozen) -> float:
    last, dest = len(frozen.record.layers) - 1, frozen.n_pos - 1
    one = direct_feature_attribution(frozen, last, dest)[0]
    largest = float(one.by_source_head.abs().max())
    parts = [source_attribution(frozen, last, dest, one.latent, s) for s in range(frozen.n_pos)]
    sums = torch.stack([part.by_node_head.sum(0) for part in parts])
    return float((sums - one.by_source_head).abs().max()) / largest


def _scores_error(frozen: Frozen) -> float:
    """Scores differ between two sources as the logarithms of the model's own pattern do."""
    last, dest = len(frozen.record.layers) - 1, frozen.n_pos - 1
    cap = frozen.weights.layers[last].soft_cap
    table = [score_pairs(frozen, last, 0, dest, source) for source in (dest, dest - 1)]
    scores = soft_capped(torch.stack([pairs.products.sum() for pairs in table]), cap)
    own = torch.tensor([pairs.pattern for pairs in table], dtype=scores.dtype).log()
    missed = (scores[0] - scores[1]).cpu() - (own[0] - own[1])
    return float(missed.abs()) / max(1.0, float(scores.abs().max()))


def _graph_error(frozen: Frozen) -> float:
    target = logit_target(frozen, 3)
    inputs = [weight for _, weight in direct_inputs(frozen, target)]
    return abs(sum(inputs) - target.value) / max(abs(target.value), *map(abs, inputs))

"""Whether attribution is exact on a model: sums of what every part gives, on random SAEs."""

import torch

from saelab.analysis.attention.dfa import direct_feature_attribution
from saelab.analysis.circuits.dictionaries import Dictionary
from saelab.analysis.circuits.frozen import Frozen, freeze
from saelab.analysis.circuits.graph import direct_inputs
from saelab.analysis.circuits.targets import logit_target
from saelab.config import UsageError
from saelab.lm.bridge import BridgeLanguageModel
from saelab.lm.conformance import Finding
from saelab.sae.topk import TopKConfig

TOLERANCE = 1e-6
"""Relative; sums are made in float64."""
D_SAE, K = 32, 4


@torch.no_grad()
def attribution_findings(lm: BridgeLanguageModel) -> list[Finding]:
    """DFA and a graph's row sums, over a random SAE on the heads of the last layer."""
    checks = {"DFA sums to the latents": _dfa_error, "graph rows sum to the logit": _graph_error}
    try:
        frozen = _frozen(lm)
    except UsageError as refusal:
        return [Finding("model", check, None, TOLERANCE, str(refusal)) for check in checks]
    return [Finding("model", c, measure(frozen), TOLERANCE) for c, measure in checks.items()]


def _frozen(lm: BridgeLanguageModel) -> Frozen:
    site = f"blocks.{lm.info.n_layers - 1}.attn.hook_z"
    generator = torch.Generator().manual_seed(0)
    sae = TopKConfig(d_sae=D_SAE, k=K).build(lm.width(site), generator)
    sae = sae.to(lm.device).eval().requires_grad_(requires_grad=False)
    tokens = torch.randint(lm.info.d_vocab, (8,), generator=generator)
    return freeze(lm, [Dictionary.at(sae, site)], tokens)


def _dfa_error(frozen: Frozen) -> float:
    last = len(frozen.record.layers) - 1
    return max(
        abs(float(one.by_source_head.sum()) + one.constant - one.value) / abs(one.value)
        for one in direct_feature_attribution(frozen, last, frozen.n_pos - 1)
    )


def _graph_error(frozen: Frozen) -> float:
    target = logit_target(frozen, 3)
    inputs = [weight for _, weight in direct_inputs(frozen, target)]
    return abs(sum(inputs) - target.value) / max(abs(target.value), *map(abs, inputs))

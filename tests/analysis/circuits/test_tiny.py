"""The identities on the shipped model, in its own float32."""

import pytest
import torch
from analysis.steering.cases import random_sae

from saelab.analysis.attention.dfa import direct_feature_attribution
from saelab.analysis.attention.qk import score_pairs
from saelab.analysis.attention.recursive import source_attribution
from saelab.analysis.circuits.explain import CircuitOptions, explain
from saelab.analysis.circuits.frozen import freeze
from saelab.analysis.circuits.hierarchical import hierarchical_attribution
from saelab.analysis.circuits.targets import logit_target
from saelab.host.host import Host
from saelab.lm.prompt import encode_prompt

PROMPT = "when tina and vera went to the garden , tina sent a lamp to"
HEADS = [f"blocks.{layer}.attn.hook_z" for layer in range(4)]


@pytest.fixture(scope="module")
def saes(tiny_lm):
    return [Host.at(tiny_lm, random_sae("topk", d_in=128), site) for site in HEADS]


@pytest.fixture(scope="module")
def frozen(tiny_lm, saes):
    return freeze(tiny_lm, saes, encode_prompt(tiny_lm, PROMPT))


def test_leaves_sum_to_the_live_logit_difference(tiny_lm, frozen):
    target = logit_target(frozen, *(tiny_lm.tokenizer.encode(w)[0] for w in ("vera", "tina")))
    logits = tiny_lm.logits(encode_prompt(tiny_lm, PROMPT)[None])[0, -1].double()
    coefficients = target.coefficients
    assert coefficients is not None
    assert target.value == pytest.approx(float(logits @ coefficients), abs=1e-4)
    assert target.value > 10
    assert hierarchical_attribution(frozen, target).recovered == pytest.approx(1.0, abs=1e-10)


def test_attributions_of_heads_sources_and_scores_add_up(frozen):
    one = direct_feature_attribution(frozen, 2, 14)[0]
    assert float(one.by_source_head.sum()) + one.constant == pytest.approx(one.value, abs=1e-10)
    given = source_attribution(frozen, 2, 14, one.latent, 4)
    torch.testing.assert_close(given.by_node.sum(), one.by_source[4], rtol=0, atol=1e-10)
    pairs = score_pairs(frozen, 2, 1, 14, 4)
    record = frozen.record.layers[2]
    score = record.q[0, 14, 1] @ record.k[0, 4, 1] / 32**0.5
    assert pairs.score == pytest.approx(float(score), abs=1e-10)


def test_a_circuit_of_the_shipped_model_is_exact_and_keeps_the_logit_with_all_latents(
    tiny_lm, saes
):
    found = explain(
        tiny_lm, saes, PROMPT, CircuitOptions(target="vera", against="tina", precision="float64")
    )
    graph = found.graph
    fed = [i for i, node in enumerate(graph.nodes) if node.kind in ("latent", "target")]
    assert max(abs(graph.row_sums()[fed] - graph.values[fed])) < 1e-10
    assert found.faithfulness.whole == pytest.approx(graph.facts["value"], abs=1e-4)

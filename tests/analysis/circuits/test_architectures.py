"""Attribution is exact on every architecture that it knows, by second methods.

Two layers of random weights, no gain, bias or multiplier at its default, in float64; in each block
an SAE on the heads, one on attention's output, and a transcoder with a skip connection.
"""

from typing import Any

import numpy as np
import pytest
import torch
from analysis.circuits.cases import one_hot, random_transcoder
from analysis.circuits.replay import Replay
from analysis.steering.cases import random_sae
from lm.architectures import ARCHITECTURES, GROUPED, WINDOWS, save_architecture

from saelab.analysis.attention.components import residual_components
from saelab.analysis.attention.dfa import direct_feature_attribution
from saelab.analysis.attention.qk import score_pairs
from saelab.analysis.attention.recursive import source_attribution
from saelab.analysis.circuits.ablation import faithfulness
from saelab.analysis.circuits.backward_walk import stop, through, walk_back
from saelab.analysis.circuits.edits import ablation_edits
from saelab.analysis.circuits.frozen import freeze
from saelab.analysis.circuits.graph import GraphOptions, attribution_graph
from saelab.analysis.circuits.patching import latent_effects
from saelab.analysis.circuits.readings import latent_reading, logit_reading
from saelab.analysis.circuits.targets import logit_target
from saelab.host.host import Host
from saelab.lm.linear.paths import soft_capped
from saelab.lm.load import load_language_model
from saelab.sites import Place

CLOSE = {"rtol": 0, "atol": 1e-9}
TOKENS, LAST, TOKEN = torch.tensor([0, 3, 4, 5, 6, 7, 8, 9]), 7, 3
CAPS = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0, "attention_bias": True}
LINEAR_ROPE = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
TWO_ROPES = {
    "full_attention": LINEAR_ROPE,
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
OLMO_3 = ("olmo3", {**GROUPED, **WINDOWS, "sliding_window": 4})
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("GPT-2", {"scale_attn_by_inverse_layer_idx": True}),
    ("Pythia (GPT-NeoX, parallel)", {}),
    ("GPT-NeoX (sequential)", {}),
    ("Gemma 1", {}),
    ("Gemma 2", CAPS),
    ("Gemma 3", {"rope_parameters": TWO_ROPES, "final_logit_softcapping": 3.0}),
    ("Qwen 2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    ("Qwen 3", {"attention_bias": True}),
    ("Qwen 2 MoE", {}),
    ("Qwen 3 MoE", {}),
    ("Llama 2", {"rope_parameters": {**YARN, "rope_theta": 1e4}, "head_dim": 20}),
    ("Llama 3 (scaled rope)", {"attention_bias": True, "mlp_bias": True}),
    ("Mistral (sliding window)", {}),
    ("Mixtral", {}),
    ("OLMo", {}),
    ("OLMo 2", {}),
    ("OLMo 3", {}),
    ("OLMoE", {}),
    ("Granite", {}),
    ("StableLM", {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}),
    ("StarCoder 2", {}),
    ("Phi", {}),
    ("Phi-3", {}),
    ("Cohere", {"use_qk_norm": True}),
    ("SmolLM3", {}),
    ("Nemotron", {}),
    ("GLM-4", {}),
]
MIXTURES = ("Qwen 2 MoE", "Qwen 3 MoE", "Mixtral", "OLMoE")
"""On a CPU their experts run in float32 only."""


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family[0])
def lm(request, tmp_path_factory):
    name, changes = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "OLMo 3", OLMO_3)
        directory = save_architecture(tmp_path_factory.mktemp("model"), name, **changes)
    dtype = torch.float32 if name in MIXTURES else torch.float64
    return load_language_model(directory, device="cpu", dtype=dtype)


@pytest.fixture(scope="module")
def saes(lm):
    """Those of block 0 write what attention and MLP return, the others what the stream gets."""
    found = []
    for layer, variant, outer, written in (
        (0, "topk", "attn.hook_out", "mlp.hook_out"),
        (1, "abs-topk", "hook_attn_out", "hook_mlp_out"),
    ):
        block = f"blocks.{layer}"
        site = f"{block}.attn.hook_z"
        found.append(Host.at(lm, random_sae(variant, d_in=lm.width(site)), site))
        site = f"{block}.{outer}"
        found.append(Host.at(lm, random_sae(variant, d_in=lm.info.d_model), site))
        sae = random_transcoder(lm, layer, variant, skip=True).sae
        before = f"{block}.ln2.hook_normalized"  # Before the norm's gain and bias.
        read = before if layer == 1 and before in lm.hooks() else f"{block}.mlp.hook_in"
        found.append(Host(lm, sae, read, f"{block}.{written}", f"mlp {layer}"))
    return found


@pytest.fixture(scope="module")
def frozen(lm, saes):
    return freeze(lm, saes, TOKENS)


def live(lm, hook, edits=None):
    return lm.run(TOKENS[None], edits=edits, hooks=[hook]).activations[hook][0]


def rounding(lm):
    """Within which it runs: most soften scores, norm and turn in float32 even in float64."""
    return {"rtol": 0, "atol": 1e-4 if lm.info.dtype == "float32" else 1e-5}


def test_the_frozen_model_is_the_live_one(lm, frozen):
    for hold in (True, False):
        replay = Replay(frozen, hold=hold)
        plain = lm.logits(TOKENS[None])[0].double()
        torch.testing.assert_close(replay.logits(), plain, **rounding(lm))
        torch.testing.assert_close(replay.read, frozen.values, **CLOSE)


def test_every_row_of_the_graph_sums_to_its_nodes_value(lm, frozen):
    target = logit_target(frozen, TOKEN, 5)
    graph = attribution_graph(
        frozen,
        target,
        ("a",) * frozen.n_pos,
        GraphOptions(max_nodes=10**6, stop_share=1, precision="float64"),
    )
    fed = [n for n, node in enumerate(graph.nodes) if node.kind in ("latent", "target")]
    assert len(fed) > 30
    assert graph.counts["influence_left_out"] == 0
    assert np.abs(graph.row_sums() - graph.values)[fed].max() < 1e-9
    logits = lm.logits(TOKENS[None])[0, LAST].double()
    plain = float(logits[TOKEN] - logits[5])
    assert graph.values[-1] == pytest.approx(plain, abs=rounding(lm)["atol"])


def test_leaves_sum_to_the_logit_and_with_direct_effects_to_every_latent(lm, frozen):
    found = walk_back(frozen, logit_reading(frozen, LAST, one_hot(lm, TOKEN)))
    logit = frozen.record.logits(frozen.weights, torch.tensor([TOKEN]))[0, LAST, 0]
    torch.testing.assert_close(found.leaves.sum(), logit, **CLOSE)
    for number, active in enumerate(frozen.actives):
        found = walk_back(
            frozen, latent_reading(frozen, number, torch.arange(len(active.codes))), stop
        )
        sums = found.gradient @ frozen.values + found.leaves.sum(1)
        torch.testing.assert_close(sums, active.codes.values, **CLOSE)


@pytest.mark.parametrize(("hold", "gate"), [(True, stop), (False, through)])
def test_gradients_are_those_of_the_frozen_model_by_autograd(lm, frozen, hold, gate):
    """Of the logit, soft cap included, and of a latent behind a parallel or post-normed block."""
    moved = torch.zeros(len(frozen.values), dtype=torch.float64, requires_grad=True)
    replay = Replay(frozen, dict(enumerate(moved)), hold=hold)
    last = len(frozen.actives) - 1
    index = frozen.spans[last].stop - 1
    entry = torch.tensor([index - frozen.spans[last].start])
    for value, reading in (
        (replay.logits()[LAST, TOKEN], logit_reading(frozen, LAST, one_hot(lm, TOKEN))),
        (replay.read[index], latent_reading(frozen, last, entry)),
    ):
        (expected,) = torch.autograd.grad(value, moved, retain_graph=True)
        found = walk_back(frozen, reading, gate).gradient[0]
        torch.testing.assert_close(found, expected, **CLOSE)
        assert bool(expected.any())


def read_by_attention(layer):
    return Place(layer, "heads"), Place(layer, "attention")


@pytest.mark.parametrize("layer", [0, 1])
def test_direct_attributions_sum_to_latents_and_sources_to_them(frozen, layer):
    names = [a.name for a in frozen.actives if a.place in read_by_attention(layer)]
    found = [direct_feature_attribution(frozen, layer, LAST, name=name)[:2] for name in names]
    assert len(found) == 2
    for one in (one for some in found for one in some):
        assert float(one.by_source_head.sum()) + one.constant == pytest.approx(one.value, abs=1e-9)
        for source in (0, 4, LAST):
            given = source_attribution(frozen, layer, LAST, one.latent, source, one.name)
            torch.testing.assert_close(
                given.by_node_head.sum(0), one.by_source_head[source], **CLOSE
            )
    stream = [block.resid_pre for block in frozen.record.layers] + [frozen.record.resid_final]
    parts = residual_components(frozen, layer + 1, LAST).vectors
    torch.testing.assert_close(parts.sum(0), stream[layer + 1][0, LAST], **CLOSE)


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 3)])
def test_pairs_of_components_give_the_live_models_attention(lm, frozen, layer, head):
    """Ratios of its pattern's entries are exponentials of differences of scores."""
    seen: list[torch.Tensor] = []
    hook = f"blocks.{layer}.attn.hook_pattern"
    lm._bridge.run_with_hooks(
        TOKENS[None], fwd_hooks=[(hook, lambda value, hook: seen.append(value))]
    )
    pattern, weights = seen[0][0, head, LAST].double(), frozen.weights.layers[layer]
    record = frozen.record.layers[layer]
    expected = weights.scores(record.q, record.k)[0, head, LAST]
    scores = torch.tensor(
        [score_pairs(frozen, layer, head, LAST, source).score for source in range(LAST + 1)],
        dtype=torch.float64,
    )
    torch.testing.assert_close(scores, expected, **CLOSE)
    mine = soft_capped(scores, weights.soft_cap)
    visible = pattern > 0
    assert int(visible.sum()) == min(weights.window or LAST + 1, LAST + 1)
    torch.testing.assert_close(mine[visible].softmax(0), pattern[visible], **rounding(lm))


def test_edits_of_heads_and_mlps_do_in_the_live_model_what_the_weights_say(lm, frozen, saes):
    """Its last block is computed anew from what its latents' ablation leaves."""
    weights, record = frozen.weights.layers[1], frozen.record.layers[1]
    heads, _, mlp = saes[3:]
    nothing = {d.name: torch.zeros(1, d.sae.d_sae, dtype=torch.bool) for d in saes}
    tokens = TOKENS[None]

    edits = ablation_edits([heads], tokens, nothing)
    z, active = frozen.record.layers[1].z_cat[0], frozen.actives[3]
    z = z - (active.written() - active.b_dec - active.error)
    raw = z @ weights.W_O.flatten(0, 1) + weights.b_O
    expected = weights.attn_post.linear(raw, weights.attn_post.scale(raw))
    given = live(lm, "blocks.1.hook_attn_out", edits).double()
    torch.testing.assert_close(given, expected, **rounding(lm))

    edits, active = ablation_edits([mlp], tokens, nothing), frozen.actives[5]
    assert active.skip is not None
    expected = active.b_dec + active.error + active.skip.written + record.resid_mid[0]
    given = live(lm, "blocks.1.hook_resid_post", edits).double()
    torch.testing.assert_close(given, expected, **rounding(lm))


def test_the_live_model_with_every_latent_is_itself_and_effects_sum_to_their_loss(lm, saes):
    def metric(logits):
        return logits[0, -1, TOKEN] - logits[0, -1, 5]

    every = {d.name: torch.ones(1, d.sae.d_sae, dtype=torch.bool) for d in saes}
    found = faithfulness(lm, saes, TOKENS[None], every, metric)
    assert found.circuit == found.whole
    assert found.empty != found.whole
    # Where a router before its experts changes its mind, the way to zero has a jump.
    sae = saes[5] if lm.info.dtype == "float32" else saes[2]
    effects = latent_effects(lm, sae, TOKENS, metric)
    assert effects.accounted == pytest.approx(effects.total, rel=0.05, abs=0.02)

"""With attention SAEs and a transcoder for every MLP, nothing nonlinear is left on the way."""

from dataclasses import replace

import pytest
import torch
from analysis.circuits.cases import hosts, one_hot, prompt_of, random_transcoder
from analysis.circuits.replay import Replay
from analysis.steering.cases import random_sae

from saelab.analysis.circuits.ablation import faithfulness, mean_codes
from saelab.analysis.circuits.backward_walk import stop, through, walk_back
from saelab.analysis.circuits.edits import ablation_edits
from saelab.analysis.circuits.explain import CircuitOptions, explain, explain_runs
from saelab.analysis.circuits.frozen import freeze
from saelab.analysis.circuits.hierarchical import hierarchical_attribution
from saelab.analysis.circuits.patching import latent_effects
from saelab.analysis.circuits.readings import latent_reading, logit_reading
from saelab.analysis.circuits.targets import logit_target
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.lm.prompt import encode_prompt
from saelab.sites import Place
from saelab.training.loop import train
from saelab.types import SparseCodes

CLOSE = {"rtol": 0, "atol": 1e-9}
HEADS = {f"blocks.{layer}.attn.hook_z": "topk" for layer in range(3)}
MLPS = (("topk", True), ("jumprelu", False), ("abs-topk", True))


def all_of(lm) -> list[Host]:
    transcoders = [random_transcoder(lm, n, v, skip=skip) for n, (v, skip) in enumerate(MLPS)]
    return [*hosts(lm, HEADS), *transcoders]


@pytest.fixture(scope="module")
def linear(lm64):
    return freeze(lm64, all_of(lm64), prompt_of(lm64))


def rows_of(frozen, gate):
    found = [
        walk_back(frozen, latent_reading(frozen, n, torch.arange(len(a.codes))), gate)
        for n, a in enumerate(frozen.actives)
    ]
    return torch.cat([f.gradient for f in found]), torch.cat([f.leaves for f in found])


def test_no_mlp_is_left_among_the_leaves(linear):
    assert not [name for name in linear.leaves if name.startswith("mlp")]
    assert [a.place for a in linear.actives] == [
        Place(layer, kind) for layer in range(3) for kind in ("heads", "mlp")
    ]


def test_with_the_errors_it_is_the_plain_model(linear, lm64):
    replay = Replay(linear, hold=False)
    exact = 1e-10 if linear.weights.W_pos is not None else 1e-4
    plain = lm64.logits(prompt_of(lm64)[None])[0]
    torch.testing.assert_close(replay.logits(), plain, rtol=exact, atol=exact)
    torch.testing.assert_close(replay.read, linear.values, rtol=0, atol=1e-11)


def test_leaves_sum_to_the_logit_and_to_every_latent(linear, lm64):
    found = walk_back(linear, logit_reading(linear, 6, one_hot(lm64, 3)))
    logit = linear.record.logits(linear.weights, torch.tensor([3]))[0, 6, 0]
    torch.testing.assert_close(found.leaves.sum(), logit, **CLOSE)
    _, leaves = rows_of(linear, through)
    torch.testing.assert_close(leaves.sum(1), linear.values, **CLOSE)


def test_direct_effects_and_leaves_sum_to_every_value(linear):
    gradient, leaves = rows_of(linear, stop)
    torch.testing.assert_close(gradient @ linear.values + leaves.sum(1), linear.values, **CLOSE)


@pytest.mark.parametrize("dropped", ["the skip connections", "the encoders' constants"])
def test_without_one_part_of_the_transcoders_the_sum_fails(linear, lm64, dropped):
    def cut(active):
        if active.place.kind != "mlp":
            return active
        if dropped == "the skip connections":
            return replace(active, skip=None)
        codes = replace(active.codes, constant=torch.zeros_like(active.codes.constant))
        return replace(active, codes=codes)

    less = replace(linear, actives=tuple(cut(active) for active in linear.actives))
    found = walk_back(less, logit_reading(less, 6, one_hot(lm64, 3)))
    logit = linear.record.logits(linear.weights, torch.tensor([3]))[0, 6, 0]
    assert abs(float(found.leaves.sum() - logit)) > 1e-3


def test_gradients_are_finite_differences_of_the_linear_model_run_forward(linear, lm64):
    """Direct ones with the other latents held, total ones with all of them free to follow."""
    reading = logit_reading(linear, 7, one_hot(lm64, 3))
    for hold, gate in ((True, stop), (False, through)):
        found = walk_back(linear, reading, gate).gradient[0]
        plain = Replay(linear, hold=hold).logits()[7, 3]
        for latent in range(0, len(linear.values), 17):
            moved = Replay(linear, {latent: 0.5}, hold=hold).logits()[7, 3]
            torch.testing.assert_close(found[latent], (moved - plain) / 0.5, **CLOSE)


def test_hierarchical_attribution_recovers_the_target(linear):
    found = hierarchical_attribution(linear, logit_target(linear, 3, 5))
    assert found.recovered == pytest.approx(1.0, abs=1e-9)


def test_a_transcoder_in_the_live_model_reads_its_source(gpt64):
    """One latent taken away at the target is one decoder row less, by its code of the source."""
    host = random_transcoder(gpt64, 1, skip=True)
    tokens = prompt_of(gpt64)[None]
    seen = gpt64.capture(tokens, [host.reads, host.writes])
    sae = host.sae
    codes = sae.encode(seen[host.reads][0].to(sae.W_dec.dtype))
    latent = int(codes.indices[4, 0])
    keep = torch.ones(1, sae.d_sae, dtype=torch.bool)
    keep[0, latent] = False
    edits = ablation_edits([host], tokens, {host.name: keep})
    found = gpt64.run(tokens, edits=edits, hooks=[host.writes])
    given = codes.dense()[:, latent, None] * sae.W_dec[latent]
    expected = seen[host.writes][0] - given
    torch.testing.assert_close(found.activations[host.writes][0], expected, rtol=0, atol=1e-5)


def test_with_every_latent_kept_the_live_model_is_the_plain_one(gpt64):
    saes, tokens = all_of(gpt64), prompt_of(gpt64)[None]
    members = {d.name: torch.ones(1, d.sae.d_sae, dtype=torch.bool) for d in saes}
    found = faithfulness(gpt64, saes, tokens, members, lambda logits: logits[0, -1, 3])
    assert found.circuit == found.whole
    assert found.empty != found.whole
    assert set(mean_codes(gpt64, saes, tokens)) == set(members)


@pytest.mark.parametrize("patched", [False, True])
def test_effects_through_a_transcoder_add_up_to_the_whole_patch(gpt64, patched):
    host = random_transcoder(gpt64, 1, skip=True)
    clean = prompt_of(gpt64)
    patch = prompt_of(gpt64, "the dog sat on a big mat") if patched else None
    found = latent_effects(
        gpt64, host, clean, lambda logits: logits[0, -1, 3], patch=patch, n_steps=60
    )
    assert found.total != 0
    assert found.accounted == pytest.approx(found.total, rel=0.02, abs=0.02)


def test_effects_of_latents_are_those_of_their_decoder_rows(gpt64):
    """Attribution patching: the gradient at the target along each row, times minus the code."""
    host = random_transcoder(gpt64, 2, skip=True)
    clean, sae = prompt_of(gpt64), host.sae
    found = latent_effects(
        gpt64, host, clean, lambda logits: logits[0, -1, 3], n_steps="attribution patching"
    )
    seen = gpt64.capture(clean[None], [host.reads, host.writes])
    codes: SparseCodes = sae.encode(seen[host.reads][0].to(sae.W_dec.dtype))
    latent = int(codes.indices[-1, 0])

    def edit(value):
        value = value.clone()
        value[0, -1] += 1e-3 * sae.W_dec[latent]
        return value

    up = gpt64.logits(clean[None], {host.writes: edit})[0, -1, 3]
    slope = float(up - gpt64.logits(clean[None])[0, -1, 3]) / 1e-3
    expected = -float(codes.values[-1, 0]) * slope
    assert float(found.latents[-1, latent]) == pytest.approx(expected, rel=2e-2, abs=1e-4)


def test_on_the_shipped_model_leaves_sum_to_the_live_logit_difference(tiny_lm):
    heads = [f"blocks.{layer}.attn.hook_z" for layer in range(4)]
    saes = [Host.at(tiny_lm, random_sae("topk", d_in=128), site) for site in heads]
    saes += [random_transcoder(tiny_lm, layer, skip=layer % 2 == 0) for layer in range(4)]
    prompt = "when tina and vera went to the garden , tina sent a lamp to"
    options = CircuitOptions(target="vera", against="tina", stop_share=1, precision="float64")
    graph = explain(tiny_lm, saes, prompt, options).graph
    assert {node.kind for node in graph.nodes} >= {"latent", "error", "embedding", "bias"}
    assert "mlp" not in {node.kind for node in graph.nodes}
    fed = [i for i, node in enumerate(graph.nodes) if node.kind in ("latent", "target")]
    assert max(abs(graph.row_sums()[fed] - graph.values[fed])) < 1e-10
    kinds = ("embedding", "position", "error", "bias")
    leaves = [i for i, node in enumerate(graph.nodes) if node.kind in kinds]
    assert graph.attributions()[leaves].sum() == pytest.approx(graph.facts["value"], abs=1e-8)
    ids = [tiny_lm.tokenizer.encode(word)[0] for word in ("vera", "tina")]
    logits = tiny_lm.logits(encode_prompt(tiny_lm, prompt)[None])[0, -1]
    assert graph.facts["value"] == pytest.approx(float(logits[ids[0]] - logits[ids[1]]), abs=1e-4)


def test_a_trained_transcoder_takes_its_place_in_a_circuit(mlp_store, random_lm, tmp_path):
    config = _config(mlp_store, "blocks.1.hook_mlp_out")
    run = train(config, out=tmp_path / "run")
    assert Host.of_run(run, random_lm).place == Place(1, "mlp")
    graph = explain_runs(random_lm, [run], "the big cat sat").graph
    assert graph.row_sums()[-1] == pytest.approx(graph.facts["value"], abs=1e-6)
    assert {node.name for node in graph.nodes if node.kind == "mlp"} == {"mlp 0"}


def test_a_transcoder_to_another_place_has_no_exact_rule(mlp_run, random_lm):
    with pytest.raises(UsageError, match=r"and writes blocks.1.mlp.hook_post; circuits take"):
        explain_runs(random_lm, [mlp_run], "the big cat sat")


def _config(store, target_site):
    from conftest import small_config

    sites = {"site": "blocks.1.ln2.hook_out", "target_site": target_site}
    return small_config(store, **sites, skip=True, n_tokens=500)

"""A cross-layer transcoder in a circuit: latents that one layer reads and several MLPs get."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analysis.circuits.cases import hosts, one_hot, prompt_of
from analysis.circuits.replay import Replay

from saelab.analysis.attention.components import residual_components
from saelab.analysis.circuits.ablation import faithfulness, mean_codes
from saelab.analysis.circuits.backward_walk import stop, through, walk_back
from saelab.analysis.circuits.edits import ablation_edits
from saelab.analysis.circuits.explain import CircuitOptions, explain
from saelab.analysis.circuits.frozen import freeze
from saelab.analysis.circuits.intervene import Change, intervene
from saelab.analysis.circuits.patching import latent_effects
from saelab.analysis.circuits.readings import latent_reading, logit_reading
from saelab.host.host import Host, by_layer
from saelab.sae.clt import CLTConfig
from saelab.sae.transcoder import make_transcoder
from saelab.training.domain import Domain, Part

CLOSE = {"rtol": 0, "atol": 1e-9}
N, D, PER_LAYER = 3, 16, 20
HEADS = {f"blocks.{layer}.attn.hook_z": "topk" for layer in range(N)}
READS, WRITES = (
    "+".join(f"blocks.{i}.{p}" for i in range(N)) for p in ("ln2.hook_out", "hook_mlp_out")
)
FACTORS = (1.5, 0.5, 0.8), (0.7, 2.0, 1.25)


def clt_host(lm, selection="batch-topk", decoders="free", factors=FACTORS, limit=None) -> Host:
    """A random cross-layer transcoder that was trained on scaled sites."""
    options = {"d_sae": N * PER_LAYER, "k": 12, "widths": (D,) * N}
    config = CLTConfig.model_validate(options | {"selection": selection, "decoders": decoders})
    generator = torch.Generator().manual_seed(0)
    sae = make_transcoder(config.build(N * D, generator), N * D, generator=generator)
    with torch.no_grad():
        for name in ("b_in", "b_enc", "b_dec"):
            value = sae.get_parameter(name)
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
        if decoders == "free":
            mask = torch.ones(N, N).triu().repeat_interleave(D, 1).repeat_interleave(PER_LAYER, 0)
            sae.W_dec.add_(0.3 * torch.randn(sae.W_dec.shape, generator=generator) * mask)
        if selection == "batch-topk":
            sae.get_buffer("threshold").fill_(0.4)
    parts = [tuple(Part(D, factor, limit) for factor in each) for each in factors]
    domain = Domain((0,), parts=parts[0], target_parts=parts[1])
    return Host(lm, sae.eval().requires_grad_(requires_grad=False), READS, WRITES, "clt", domain)


@pytest.fixture(scope="module", params=[("batch-topk", "free"), ("topk", "tied-source")])
def linear(lm64, request):
    return freeze(lm64, [*hosts(lm64, HEADS), clt_host(lm64, *request.param)], prompt_of(lm64))


def test_each_layer_infers_and_writes_as_the_whole(lm64):
    """By the joint codes and decoder alone: dense, in float64, in the model's units."""
    host, tokens = clt_host(lm64), prompt_of(lm64)[None]
    sae = host.sae
    seen = lm64.capture(tokens, [*READS.split("+"), *WRITES.split("+")])
    x = torch.cat([seen[s] * f for s, f in zip(READS.split("+"), FACTORS[0], strict=True)], -1)[0]
    joint = sae.encode(x.float()).dense()
    joint[tokens[0] == 0] = 0
    written = (joint @ sae.W_dec).view(-1, N, D) / torch.tensor(FACTORS[1])[:, None]
    frozen = freeze(lm64, [host], tokens[0])
    values = torch.zeros(len(joint), N * PER_LAYER, dtype=torch.float64)
    for number, active in enumerate(frozen.actives):
        values[active.codes.row, active.codes.latent + number * PER_LAYER] = active.codes.values
        assert active.layer_of == ("clt", number * PER_LAYER)
        b_dec = sae.b_dec.view(N, D)[number] / FACTORS[1][number] * active.applies[:, None]
        error = seen[WRITES.split("+")[number]][0] - written[:, number] - b_dec
        torch.testing.assert_close(active.error, error.double(), rtol=0, atol=1e-5)
    assert (joint > 0).any(0).view(N, -1).any(1).all()
    torch.testing.assert_close(values, joint.double(), rtol=0, atol=1e-5)


def test_the_walk_is_exact(linear, lm64):
    found = [
        (walk_back(linear, latent_reading(linear, n, torch.arange(len(a.codes))), stop),
         walk_back(linear, latent_reading(linear, n, torch.arange(len(a.codes))), through))
        for n, a in enumerate(linear.actives)
    ]  # fmt: skip
    direct, total = (torch.cat([f[i].gradient for f in found]) for i in (0, 1))
    rest, leaves = (torch.cat([f[i].leaves for f in found]) for i in (0, 1))
    torch.testing.assert_close(direct @ linear.values + rest.sum(1), linear.values, **CLOSE)
    torch.testing.assert_close(leaves.sum(1), linear.values, **CLOSE)
    assert (total != direct).any()
    logit = linear.record.logits(linear.weights, torch.tensor([3]))[0, 6, 0]
    whole = walk_back(linear, logit_reading(linear, 6, one_hot(lm64, 3)))
    torch.testing.assert_close(whole.leaves.sum(), logit, **CLOSE)


@pytest.mark.parametrize(("hold", "gate"), [(True, stop), (False, through)])
def test_gradients_are_differences_of_the_linear_model_run_forward(linear, lm64, hold, gate):
    found = walk_back(linear, logit_reading(linear, 7, one_hot(lm64, 3)), gate).gradient[0]
    plain = Replay(linear, hold=hold).logits()[7, 3]
    for latent in range(0, len(linear.values), 23):
        moved = Replay(linear, {latent: 0.5}, hold=hold).logits()[7, 3]
        torch.testing.assert_close(found[latent], (moved - plain) / 0.5, **CLOSE)


def test_without_its_further_writes_the_sum_fails(linear, lm64):
    cut = replace(linear, actives=tuple(replace(a, further=()) for a in linear.actives))
    found = walk_back(cut, logit_reading(cut, 6, one_hot(lm64, 3)))
    logit = linear.record.logits(linear.weights, torch.tensor([3]))[0, 6, 0]
    assert abs(float(found.leaves.sum() - logit)) > 1e-3


def test_the_stream_is_the_sum_of_components_each_named_once(linear):
    found = residual_components(linear, N, 4)
    assert len(set(found.nodes)) == len(found.nodes)
    torch.testing.assert_close(found.vectors.sum(0), linear.record.resid_final[0, 4], **CLOSE)


def test_a_latent_taken_away_is_gone_from_every_output_that_it_writes(gpt64):
    host, tokens = clt_host(gpt64), prompt_of(gpt64)[None]
    layers, outputs = by_layer([host]), WRITES.split("+")
    assert [layer.name for layer in layers] == ["clt/0", "clt/1", "clt/2"]
    active = freeze(gpt64, [host], tokens[0]).actives[1]
    entry = len(active.codes) - 1
    position, latent = int(active.codes.row[entry]), int(active.codes.latent[entry])
    keep = {each.name: torch.ones(tokens.shape[1], PER_LAYER, dtype=torch.bool) for each in layers}
    keep["clt/1"][position, latent] = False
    found = gpt64.run(tokens, edits=ablation_edits([host], tokens, keep), hooks=outputs)
    row = host.sae.W_dec[PER_LAYER + latent].view(N, D) / torch.tensor(FACTORS[1])[:, None]
    before = gpt64.capture(tokens, outputs)

    def last(value):
        value = value.clone()
        value[0, position] -= active.codes.values[entry] * row[1]
        return value

    alone = gpt64.run(tokens, edits={outputs[1]: last}, hooks=outputs).activations
    for layer, name in enumerate(outputs):
        expected = (before if layer < 2 else alone)[name][0].clone()
        if layer:
            expected[position] -= active.codes.values[entry] * row[layer] * (layer == 2)
        if layer == 1:
            expected = alone[name][0]
        torch.testing.assert_close(found.activations[name][0], expected, rtol=0, atol=1e-5)
    change = Change([("clt/1", latent, position)])
    torch.testing.assert_close(
        intervene(gpt64, [host], tokens[0], change).after.double(),
        gpt64.logits(tokens, ablation_edits([host], tokens, keep))[0, -1].double(),
    )


def test_with_every_latent_kept_the_live_model_is_the_plain_one(gpt64):
    host, tokens = clt_host(gpt64), prompt_of(gpt64)[None]
    members = {d.name: torch.ones(1, d.sae.d_sae, dtype=torch.bool) for d in by_layer([host])}
    found = faithfulness(gpt64, [host], tokens, members, lambda logits: logits[0, -1, 3])
    assert found.circuit == found.whole == float(gpt64.logits(tokens)[0, -1, 3])
    assert found.empty != found.whole
    assert set(mean_codes(gpt64, [host], tokens)) == set(members)


def test_effects_of_a_layers_latents_add_up_to_taking_all_away(gpt64):
    host, clean = clt_host(gpt64), prompt_of(gpt64)

    def metric(logits):
        return logits[0, -1, 3]

    for layer in by_layer([host])[:2]:
        found = latent_effects(gpt64, layer, clean, metric, n_steps=60)
        keep = {d.name: torch.ones(1, PER_LAYER, dtype=torch.bool) for d in by_layer([host])}
        keep[layer.name] = ~keep[layer.name]
        without = metric(gpt64.logits(clean[None], ablation_edits([host], clean[None], keep)))
        total = float(without - metric(gpt64.logits(clean[None])))
        assert found.total == pytest.approx(total, abs=1e-5)
        assert found.accounted == pytest.approx(found.total, rel=0.02, abs=0.02)


def test_where_an_output_has_a_massive_norm_nothing_is_written(gpt64):
    host, tokens = clt_host(gpt64), prompt_of(gpt64)
    out = gpt64.capture(tokens[None], WRITES.split("+"))[WRITES.split("+")[2]][0]
    sizes = out.norm(dim=-1)
    limits = [None, None, float(sizes.sort().values[-2:].mean())]
    parts = tuple(Part(D, f, most) for f, most in zip(FACTORS[1], limits, strict=True))
    limited = replace(host, domain=replace(host.domain, target_parts=parts))
    frozen = freeze(gpt64, [limited], tokens)
    massive = int(sizes.argmax())
    torch.testing.assert_close(frozen.actives[2].error[massive], out[massive], **CLOSE)
    found = walk_back(frozen, logit_reading(frozen, 7, one_hot(gpt64, 3)))
    logit = frozen.record.logits(frozen.weights, torch.tensor([3]))[0, 7, 0]
    torch.testing.assert_close(found.leaves.sum(), logit, **CLOSE)


def test_a_circuit_of_it_is_explained_judged_and_names_its_run(gpt64):
    saes = [*hosts(gpt64, HEADS), clt_host(gpt64)]
    options = CircuitOptions(max_nodes=10_000, n_members=0, n_interventions=2)
    found = explain(gpt64, saes, "the big cat sat on", options)
    graph = found.graph
    fed = [i for i, node in enumerate(graph.nodes) if node.kind in ("latent", "target")]
    np.testing.assert_allclose(graph.row_sums()[fed], graph.values[fed], atol=1e-4)
    node = next(n for n in graph.nodes if n.kind == "latent" and n.name == "clt/2")
    assert graph.in_run(node) == ("clt", 2 * PER_LAYER + (node.latent or 0))
    assert "mlp" not in {n.kind for n in graph.nodes}
    name, latent, position = node.name, node.latent, node.position
    asked = CircuitOptions(latent=f"{name}:{latent}@{position}", n_members=0, n_interventions=0)
    value = explain(gpt64, saes, "the big cat sat on", asked).graph.facts["value"]
    assert value == pytest.approx(node.value, abs=1e-9)
    assert len(found.interventions) == 2

"""A graph's own latents by influence, thinned in the live model, and several prompts at once."""

from dataclasses import replace

import pytest
import torch
from analysis.circuits.cases import frozen_of

from saelab.analysis.circuits.ablation import members_at, metric_with
from saelab.analysis.circuits.explain import CircuitOptions, explain
from saelab.analysis.circuits.influence import node_influence
from saelab.analysis.circuits.live import drawn, live_metric
from saelab.analysis.circuits.own import graph_curve, graph_latents, thinned
from saelab.analysis.circuits.targets import logit_target
from saelab.cli.circuit_prompts import TINY, caveats, read_prompts, scores_tables
from saelab.cli.circuit_tables import summary
from saelab.config import UsageError

FEW = CircuitOptions(n_members=0, n_interventions=0, n_attention=0, max_nodes=100)


@pytest.fixture(scope="module")
def frozen64(gpt64):
    return frozen_of(gpt64, transcoder=2)


@pytest.fixture(scope="module")
def circuit(gpt64, saes):
    options = FEW.model_copy(update={"n_latents": 6, "n_thinned": 2})
    return explain(gpt64, saes, "the big cat sat on a red", options)


def test_the_most_influential_latents_of_a_graph_are_its_own(circuit, frozen64, gpt64, saes):
    graph, influence = circuit.graph, node_influence(circuit.graph)
    latents = [i for i, node in enumerate(graph.nodes) if node.kind == "latent"]
    best = {graph.nodes[i] for i in sorted(latents, key=lambda i: -influence[i])[:6]}
    found = graph_latents(frozen64, graph, 6)
    names = [active.name for active in frozen64.actives]
    for node in best:
        number = names.index(node.name)
        assert found[frozen64.latent_index(number, node.latent, node.position)]
    assert int(found.sum()) == circuit.faithfulness.n_members == 6
    target = logit_target(frozen64, int(graph.facts["token"]))
    metric = live_metric(frozen64, saes, target)
    (judged,) = graph_curve(gpt64, saes, frozen64, graph, metric, sizes=(6,))
    assert judged.circuit == pytest.approx(circuit.faithfulness.circuit, abs=1e-5)


def test_thinning_leaves_out_what_the_target_needs_least(circuit, frozen64, gpt64, saes):
    chosen = graph_latents(frozen64, circuit.graph, 5)
    target = logit_target(frozen64, int(circuit.graph.facts["token"]))
    metric = live_metric(frozen64, saes, target)
    sizes = {host.name: host.sae.d_sae for host in saes}
    tokens, far = frozen64.record.tokens, {}
    for index in chosen.nonzero()[:, 0].tolist():
        left = chosen.clone()
        left[index] = False
        members = members_at(frozen64, left, sizes)
        value = metric_with(gpt64, saes, tokens, members, metric)
        far[index] = abs(value - circuit.faithfulness.whole)
    found = thinned(gpt64, saes, frozen64, chosen, 4, metric)
    (gone,) = (chosen & ~found).nonzero()[:, 0].tolist()
    assert far[gone] == min(far.values())
    assert torch.equal(thinned(gpt64, saes, frozen64, chosen, 5, metric), chosen)


def test_thinned_latents_stand_beside_random_ones_thinned_likewise(circuit, frozen64, gpt64, saes):
    target = logit_target(frozen64, int(circuit.graph.facts["token"]))
    metric = live_metric(frozen64, saes, target)
    sizes = {host.name: host.sae.d_sae for host in saes}
    start = graph_latents(frozen64, circuit.graph, 4)
    (draw, *_) = drawn(frozen64, metric, 4, 3)
    for chosen, judged in (
        (start, circuit.thinned.faithfulness),
        (draw, circuit.thinned.by_chance[0]),
    ):
        left = thinned(gpt64, saes, frozen64, chosen, 2, metric)
        value = metric_with(
            gpt64, saes, frozen64.record.tokens, members_at(frozen64, left, sizes), metric
        )
        assert judged.circuit == pytest.approx(value, abs=1e-5)
        assert judged.n_members == 2
    assert len(circuit.thinned.by_chance) == 3


def test_more_latents_than_the_graph_may_have_are_refused(gpt64, saes):
    for name in ("n_latents", "n_thinned"):
        options = FEW.model_copy(update={name: 101})
        with pytest.raises(UsageError, match="101 is more than the graph's 100 latents"):
            explain(gpt64, saes, "the big cat sat on a red", options)
    few = FEW.model_copy(update={"stop_share": 0.01, "batch_size": 1, "n_latents": 50})
    with pytest.raises(UsageError, match=r"--n-latents 50 .* raise --stop-share"):
        explain(gpt64, saes, "the big cat sat on a red", few)


def test_several_circuits_have_a_line_each_and_their_mean(circuit):
    graphs, live = scores_tables([circuit, replace(circuit, thinned=None)])
    assert graphs.row_count == 3
    shown = list(
        zip(*([str(cell) for cell in column.cells] for column in live.columns), strict=True)
    )
    assert [(row[0], row[2]) for row in shown] == [
        *[("the graph", "6")] * 3,
        ("it, thinned", "2"),
    ]


def test_ratios_that_are_noise_are_a_sentence_instead(circuit):
    judged = circuit.faithfulness
    far = replace(judged, circuit=judged.whole + 3 * (judged.whole - judged.empty))
    noisy = replace(circuit, by_chance=(far, far), curve=(judged,))
    (line,) = caveats([circuit, noisy])
    assert "(the graph; it, thinned): " in line
    assert line.endswith("ratios would be noise and none are given.")
    alone = replace(circuit, faithfulness=replace(judged, n_members=0))
    (line,) = caveats([alone])
    assert "(the graph): No latent is in the circuit" in line
    text = summary(noisy, n_members=0)
    assert text.count("would be noise") == 2  # the graph's latents and the thinned ones
    assert f"     6 of them: {judged.circuit:.2f} alone" in text
    assert "faithfulness" not in text
    assert "faithfulness" in summary(replace(circuit, curve=(judged,)), n_members=0)
    _, live = scores_tables([noisy])
    assert [str(cell) for cell in list(live.columns)[3].cells] == ["-", "-"]


def test_prompts_are_read_line_by_line(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a b"}\n\n{"prompt": "c", "target": "d", "against": "e"}\n')
    first, second = read_prompts(file)
    assert (first.prompt, first.target) == ("a b", None)
    assert (second.target, second.against) == ("d", "e")
    assert read_prompts(tmp_path.__class__("tiny")) == TINY


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has 0 prompts"),
        ('{"prompt": ""}', "line 1: prompt"),
        ('{"prompt": "a"}\n{"promt": "a"}', "line 2: "),
        ("no json", "line 1: "),
        ('{"prompt": "a", "target": 3}', "line 1: target"),
    ],
)
def test_other_files_are_refused(text, said, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_prompts(file)

"""From a prompt to a circuit, on the random model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from analysis.circuits.cases import PROMPT, hosts

from saelab.analysis.circuits.explain import (
    CircuitOptions,
    circuit_path,
    explain,
    largest_inputs,
)
from saelab.config import UsageError
from saelab.figures.circuits import (
    circuit_figure,
    faithfulness_figure,
    what_is_missing,
)
from saelab.lm.prompt import token_id


@pytest.fixture(scope="module")
def saes(gpt64):
    return hosts(gpt64, transcoder=2)


@pytest.fixture(scope="module")
def circuit(gpt64, saes):
    return explain(gpt64, saes, PROMPT, CircuitOptions(target="dog", against="cat", max_nodes=60))


def test_the_target_is_the_live_models_logit_difference(gpt64, circuit):
    ids = torch.tensor([[0, *gpt64.tokenizer.encode(PROMPT)]])
    logits = gpt64.logits(ids)[0, -1]
    expected = float(logits[token_id(gpt64, "dog")] - logits[token_id(gpt64, "cat")])
    assert circuit.graph.facts["value"] == pytest.approx(expected, abs=1e-10)
    assert circuit.faithfulness.whole == pytest.approx(expected, abs=1e-10)
    assert circuit.graph.facts["target"] == "logit 'dog' - logit 'cat'"
    assert circuit.graph.tokens[:3] == ("<bos>", "the", "big")


def test_by_default_the_likeliest_token_is_explained(gpt64, saes):
    found = explain(gpt64, saes, PROMPT, CircuitOptions(max_nodes=5, n_members=0))
    ids = torch.tensor([[0, *gpt64.tokenizer.encode(PROMPT)]])
    probabilities = gpt64.logits(ids)[0, -1].softmax(-1)
    assert found.graph.facts["token"] == int(probabilities.argmax())
    assert found.graph.facts["probability"] == pytest.approx(float(probabilities.max()))


def test_the_judged_latents_are_those_of_the_pruned_graph(circuit):
    kept = [node for node in circuit.pruned.nodes if node.kind == "latent"]
    for node in kept:
        assert circuit.members[node.name][node.position, node.latent]
    assert circuit.faithfulness.n_members == len(kept)


def test_latents_of_the_largest_effects_are_judged_beside_them(circuit):
    other = circuit.by_gradients
    assert other.faithfulness.n_members == 40
    assert other.faithfulness.whole == circuit.faithfulness.whole
    assert -1 <= other.agreement <= 1
    assert circuit.graph.facts["by_gradients"]["agreement"] == other.agreement


def test_or_those_that_hierarchical_attribution_keeps(gpt64, saes):
    few, many = (
        explain(gpt64, saes, PROMPT, CircuitOptions(max_nodes=5, threshold=t, n_members=0))
        for t in (0.5, 0.01)
    )
    assert few.faithfulness.n_members < many.faithfulness.n_members
    assert few.by_gradients is None


def test_a_latent_is_explained_where_it_fires_last_or_where_asked(gpt64, saes, circuit):
    name = "blocks.2.attn.hook_z"
    node = [n for n in circuit.graph.nodes if n.kind == "latent" and n.name == name][-1]
    for text in (f"{name}:{node.latent}", f"{name}:{node.latent}@{node.position}"):
        found = explain(gpt64, saes, PROMPT, CircuitOptions(latent=text, max_nodes=40))
        assert found.graph.facts["target"] == f"{name} {node.latent} @{node.position}"
        assert found.graph.facts["value"] == pytest.approx(node.value, abs=1e-10)
        assert found.graph.row_sums()[-1] == pytest.approx(node.value, rel=1e-4)
        # What it reads in the live model, with nothing ablated and with everything upstream.
        assert found.faithfulness.whole == pytest.approx(node.value, abs=1e-9)
        assert found.faithfulness.empty != found.faithfulness.whole
        assert found.by_gradients is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": "other:3"}, "'other:3' names no latent; write SAE:NUMBER"),
        ({"latent": "blocks.2.attn.hook_z:x"}, "names no latent"),
        ({"latent": "blocks.2.attn.hook_z:3@"}, "names no latent"),
        (
            {"latent": "blocks.2.attn.hook_z:24@2"},
            "has 24 latents, so .* no latent 24; give 0 to 23",
        ),
        ({"latent": "blocks.2.attn.hook_z:22"}, "does not fire on the prompt"),
        ({"latent": "blocks.2.attn.hook_z:22@2"}, "does not fire at position 2"),
        ({"latent": "blocks.2.attn.hook_z:3", "target": "cat"}, "a latent and a token"),
    ],
)
def test_latents_that_cannot_be_explained_are_refused(gpt64, saes, options, message):
    with pytest.raises(UsageError, match=message):
        explain(gpt64, saes, PROMPT, CircuitOptions(**options))


def test_the_largest_inputs_come_first(circuit):
    found = largest_inputs(circuit.graph, 5)
    sizes = [abs(given) for _, given in found]
    assert sizes == sorted(sizes, reverse=True)
    assert len(found) == 5


def test_the_figure_has_a_marker_a_node_and_a_row_a_place(circuit):
    figure = circuit_figure(circuit.pruned)
    traces: Any = list(figure.data)
    markers = next(trace for trace in traces if trace.mode == "markers")
    assert len(markers.x) == len(circuit.pruned.nodes)
    layout: Any = figure.layout
    rows = layout.yaxis.ticktext
    assert rows[-1] == "target"
    assert "embeddings" in rows
    lines = sum(trace.x.count(None) for trace in traces if trace.mode == "lines")
    assert lines == len(circuit.pruned.weight)


def test_the_figure_says_what_a_budget_and_pruning_left_out(circuit):
    counts = circuit.pruned.counts
    layout: Any = circuit_figure(circuit.pruned).layout
    said = layout.title.subtitle.text
    assert said.startswith(f"{counts['latents_left_out']} of {counts['active_latents']} active")
    assert f"({counts['influence_left_out']:.1%} of the influence)" in said
    assert f"{counts['pruned_nodes']:,} nodes and {counts['pruned_edges']:,} edges pruned" in said
    whole = replace(circuit.graph, counts={"latents_left_out": 0})
    assert "pruned" not in what_is_missing(whole)


def test_faithfulness_over_sizes_has_a_panel_a_behaviour():
    curves = {"a": [(5, 0.1, 0.9), (10, 0.8, -0.1)], "b": [(5, 0.5, 0.2)]}
    traces: Any = faithfulness_figure(curves).data
    assert [(trace.name, list(trace.x), list(trace.y)) for trace in traces[:2]] == [
        ("kept alone", [5, 10], [0.1, 0.8]),
        ("ablated", [5, 10], [0.9, -0.1]),
    ]
    assert len(traces) == 4


@pytest.mark.parametrize("prompt", ["", "the big zebra", " ".join(["cat"] * 40)])
def test_prompts_that_the_model_cannot_read_are_refused(gpt64, saes, prompt):
    with pytest.raises(
        UsageError, match=r"The prompt (is empty|has 41 tokens)|does not know “zebra”"
    ):
        explain(gpt64, saes, prompt)


def test_words_that_are_not_one_token_are_refused(gpt64, saes):
    for word in ("zebra", "the cat", ""):
        with pytest.raises(UsageError, match="is not one token of"):
            explain(gpt64, saes, PROMPT, CircuitOptions(target=word))


def test_a_circuits_file_is_named_after_prompt_and_target(tmp_path):
    path = circuit_path(tmp_path, "a b c d e f g , h", "x/../y")
    assert path.parent == tmp_path / "circuits"
    assert path.name == "d-e-f-g-h-to-xy.json"

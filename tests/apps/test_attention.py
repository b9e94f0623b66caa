"""The Attention page: without a model, and on a random model whose sums can be checked."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apps.driving import Open, address, drawn
from feature_browser.data.address import parsed
from feature_browser.data.catalogue import read_catalogue
from feature_browser.live import effects
from feature_browser.live.effects import measure
from feature_browser.live.jobs import GraphJob
from feature_browser.pages.attention.address import AttentionAddress
from feature_browser.pages.attention.study import Parts, prompt_ids, strongest, study
from feature_browser.pages.attention.trail import (
    TrailStep,
    beside_text,
    chosen_runs,
    depth,
    reads_heads,
    runs_before,
    trail_of,
    trail_text,
)
from feature_browser.pages.circuit import interventions

from saelab.analysis.circuits.nodes import Node
from saelab.config import UsageError
from saelab.formats.json_file import read_sealed_json, write_sealed_json
from saelab.training.run import Run

PROMPT = "the big cat sat on a red"


@pytest.fixture(scope="module")
def catalogue(circuit_runs: Path):
    return read_catalogue(circuit_runs)


@pytest.fixture(scope="module")
def cards(catalogue):
    """The SAE on heads, and the one on the stream before them."""
    return [catalogue.runs["heads"], catalogue.runs["topk"]]


@pytest.fixture(scope="module")
def ids(cards):
    return prompt_ids(cards[0], PROMPT)


@pytest.fixture(scope="module")
def step(cards, ids):
    """A latent of heads that fires on the prompt, where it fires most."""
    for latent in range(32):
        if position := strongest(cards, ids, "heads", latent):
            return TrailStep("heads", latent, position)
    raise AssertionError("no latent fires behind <bos>")


# The address


def test_a_trail_is_read_back_and_ends_where_it_makes_no_sense():
    steps = [TrailStep("a:b@c", 3, 4), TrailStep("x", 0, 0)]
    assert trail_of(trail_text(steps), ["x", "a:b@c"]) == steps
    assert trail_of(trail_text(steps), ["x"]) == []
    for text in ("", "x", "x:1", "x:-1@2", "x:1@b", "x:٣@x", "|||"):
        assert trail_of(text, ["x"]) == []


@pytest.mark.parametrize("kind", ["heads", "residual", "mlp"])
def test_a_sites_rank_is_that_of_the_circuits(cards, kind: str):
    from dataclasses import replace

    from saelab.sites import Place as Where

    sites = {
        "heads": [("blocks.7.attn.hook_z", 7)],
        "residual": [("blocks.7.hook_resid_pre", 7), ("blocks.7.hook_resid_post", 8)],
        "mlp": [("blocks.7.ln2.hook_out", 7), ("blocks.7.mlp.hook_in", 7)],
    }[kind]
    config = {"target_site": "blocks.7.hook_mlp_out"} if kind == "mlp" else {}
    for site, layer in sites:
        card = replace(cards[0], site=site, config=config)
        assert depth(card) == Where(layer, kind).depth  # pyrefly: ignore[bad-argument-type]
        assert reads_heads(card) == (kind == "heads")
    for site in ("blocks.7.mlp.hook_post", "hook_embed", "blocks.x.attn.hook_z"):
        assert depth(replace(cards[0], site=site)) is None


def test_of_runs_at_one_place_the_named_one_is_taken(catalogue, cards):
    from dataclasses import replace

    other = replace(cards[1], name="other")
    catalogue = replace(catalogue, runs=catalogue.runs | {"other": other})
    found = runs_before(catalogue, cards[0])
    place = AttentionAddress()
    assert [card.name for card in chosen_runs(found, place)] == ["topk"]
    there = place.to(beside=beside_text(found, place, other))
    assert [card.name for card in chosen_runs(found, there)] == ["other"]
    assert chosen_runs(found, place.to(beside="none")) == []
    assert runs_before(catalogue, cards[1]) == {}


# What is computed


def test_sources_and_the_constant_sum_to_the_activation(cards, ids, step):
    found = study(cards, ids, step, None, None)
    assert found.sources is not None
    total = found.sources.table.sum() + found.sources.constant
    assert total == pytest.approx(found.value, abs=1e-9)
    assert not found.sources.table[step.position + 1 :].any()
    assert (step.position, pytest.approx(found.value)) in found.fires


def test_what_a_source_holds_sums_to_what_it_gives(cards, ids, step):
    for position in range(step.position + 1):
        found = study(cards, ids, step, position, None)
        assert found.parts is not None
        assert found.sources is not None
        total = sum(amount for _, amount in found.parts.rows) + found.parts.others
        assert total == pytest.approx(found.sources.table[position].sum(), abs=1e-9)
        kinds = {node.kind for node, _ in found.parts.rows}
        # Of the SAE on the stream, which is not applied at <bos>.
        assert ("latent" in kinds) == (position not in found.left_out["topk"])
        assert found.left_out == {"topk": [0], "heads": [0]}


def test_without_an_sae_before_it_a_source_is_whole_parts(cards, ids, step):
    found = study(cards[:1], ids, step, step.position, None)
    assert found.parts is not None
    assert {node.kind for node, _ in found.parts.rows} <= {
        "heads", "mlp", "embedding", "position", "bias",
    }  # fmt: skip


def test_the_head_that_gives_most_is_asked_why_it_looks_there(cards, ids, step):
    found = study(cards, ids, step, 1, None)
    assert found.sources is not None
    assert found.score is not None
    assert found.score.head == np.abs(found.sources.table[1]).argmax()
    assert 0 <= found.score.attention <= 1
    assert study(cards, ids, step, 1, 2).score.head == 2
    assert study(cards, ids, step, 1, 99).score.head == found.score.head


def test_a_latent_of_the_stream_is_made_by_its_direct_inputs(cards, ids):
    position = strongest(cards, ids, "topk", latent := _firing(cards, ids, "topk"))
    assert position is not None
    found = study(cards, ids, TrailStep("topk", latent, position), None, None)
    assert found.inputs is not None
    total = sum(amount for _, amount in found.inputs.rows) + found.inputs.others
    assert total == pytest.approx(found.value, abs=1e-9)


def _firing(cards, ids, sae: str) -> int:
    return next(i for i in range(32) if strongest(cards, ids, sae, i) is not None)


def test_small_amounts_are_summed_not_dropped():
    nodes = [Node("bias", str(i), 0) for i in range(6)]
    parts = Parts.of([(node, (-1.0) ** i * i) for i, node in enumerate(nodes)], 2)
    assert [amount for _, amount in parts.rows] == [-5.0, 4.0]
    assert (parts.n_others, parts.others) == (4, -3.0 + 2.0 - 1.0 + 0.0)


def test_a_latent_that_does_not_fire_and_a_place_that_is_not_there_are_refused(cards, ids, step):
    silent = next(i for i in range(32) if strongest(cards, ids, "heads", i) is None)
    with pytest.raises(UsageError, match="does not fire at position"):
        study(cards, ids, TrailStep("heads", silent, 1), None, None)
    with pytest.raises(UsageError, match="Position 99 is not in the text"):
        study(cards, ids, TrailStep("heads", step.latent, 99), None, None)
    with pytest.raises(UsageError, match="is not one that"):
        study(cards, (0, 10**6), step, None, None)


# The page


def test_a_run_on_the_stream_says_what_the_page_needs(open_app: Open, runs: Path):
    page = drawn(open_app(runs, view="attention", run="signed"))
    assert "It needs a run whose SAE reads attention heads" in page
    assert "blocks.2.hook_resid_post" in page


def test_heads_and_examples_are_shown_before_any_model_is_loaded(
    open_app: Open, circuit_runs: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_model(*_: object) -> None:
        raise AssertionError("the model was asked for")

    monkeypatch.setattr("feature_browser.pages.attention.study.live_run", no_model)
    app = open_app(circuit_runs, view="attention", run="heads")
    page = drawn(app)
    assert "latent" in address(app)
    assert page.count("<dt>head ") == 4
    assert "click one to see its sources" in page
    assert "Which source tokens" not in page


@pytest.mark.parametrize("latent", ["32", "-1", "<b>", "٣٣٣"])
def test_an_unknown_latent_is_answered(open_app: Open, circuit_runs: Path, latent: str):
    page = drawn(open_app(circuit_runs, view="attention", run="heads", latent=latent))
    assert "There is no latent" in page
    assert "<b>" not in page.split("There is no latent")[1].split("</h1>")[0]


def test_without_features_a_prompt_is_asked_for(open_app: Open, circuit_runs: Path, tmp_path: Path):
    shutil.copytree(circuit_runs / "heads", tmp_path / "heads")
    (tmp_path / "heads" / "features.h5").unlink()
    page = drawn(open_app(tmp_path, view="attention", run="heads", latent="1"))
    assert f"saelab features {tmp_path}/heads" in page
    assert "No other SAE" in page


def test_an_example_is_followed_to_its_sources_and_on(open_app: Open, circuit_runs: Path):
    app = open_app(circuit_runs, view="attention", run="heads")
    href = re.search(r'class="value" href="([^"]+)"', drawn(app))
    assert href is not None
    there = AttentionAddress.of(parsed(href[1].replace("&amp;", "&")))
    page = drawn(open_app(circuit_runs, **there.params()))
    assert "Which source tokens, through which heads?" in page
    assert "example current" in page
    page = drawn(open_app(circuit_runs, **there.to(source=there.pos).params()))
    assert "holds that does it" in page
    assert "Why head 1." in page
    assert 'class="column"' in page
    follow = re.search(r'class="amount \w+" href="([^"]+)"', page)
    assert follow is not None
    onward = AttentionAddress.of(parsed(follow[1].replace("&amp;", "&")))
    assert onward.trail.startswith("topk:")
    page = drawn(open_app(circuit_runs, **onward.params()))
    assert "What gives it its value directly?" in page
    assert 'aria-current="step"' in page


def test_a_typed_prompt_is_read_where_the_latent_fires_most(
    open_app: Open, circuit_runs: Path, step: TrailStep
):
    app = open_app(circuit_runs, view="attention", run="heads", latent=str(step.latent))
    app.text_input(key="attention-prompt").set_value(PROMPT).run()
    assert address(app)["prompt"] == PROMPT
    assert f"position {step.position} of 8" in drawn(app)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("the zebra <i>", "does not know"), (" ".join(["cat"] * 40), "has 41 tokens")],
)
def test_a_prompt_that_cannot_be_read_is_said(
    open_app: Open, circuit_runs: Path, prompt: str, reason: str
):
    page = drawn(open_app(circuit_runs, view="attention", run="heads", latent="1", prompt=prompt))
    assert reason in page
    assert "<i>" not in page


def test_a_model_that_cannot_be_loaded_is_said_beside_the_rest(
    open_app: Open, circuit_runs: Path, tmp_path: Path
):
    path = Path(shutil.copytree(circuit_runs / "heads", tmp_path / "heads")) / "provenance.json"
    values = read_sealed_json(path)
    values["model"]["name"] = "/no/such/model"
    values["model"]["weights_digest"] = "0" * 64  # by which it would be found, wherever it is
    write_sealed_json(path, values)
    page = drawn(open_app(tmp_path, view="attention", run="heads", latent="1", prompt=PROMPT))
    # Not there, or beside it another one of its name.
    assert "pass --model" in page
    assert "Heads, by its weights" in page


@pytest.mark.parametrize(
    "odd",
    [
        {"pos": "999"}, {"pos": "<u>"}, {"source": "-1"}, {"head": "٣"}, {"example": "10**9"},
        {"trail": "topk:9999@1"}, {"trail": "<u>:1@1"}, {"beside": "../x|<u>"},
    ],
)  # fmt: skip
def test_odd_addresses_are_answered(
    open_app: Open, circuit_runs: Path, step: TrailStep, odd: dict[str, str]
):
    known = {"latent": str(step.latent), "prompt": PROMPT, "source": "1"}
    page = drawn(open_app(circuit_runs, view="attention", run="heads", **(known | odd)))
    assert "Heads, by its weights" in page
    assert "Which source tokens" in page or 'class="notice"' in page
    assert "<u>" not in page


# The Circuit page on the same runs


def graph_of(circuit_runs: Path):
    from feature_browser.pages.circuit.graphs import open_graph

    card = read_catalogue(circuit_runs).runs["heads"]
    (path,) = (card.path / "circuits").glob("*.h5")
    found = open_graph(card, path.stem)
    assert found is not None
    return found


def hosts_of(found, circuit_runs: Path):
    from saelab.analysis.circuits.session import Session

    return Session().loaded([Run(circuit_runs / name) for name in found.saes])[1]


class AnswersAtOnce:
    """A queue without a process."""

    job: GraphJob

    def submit(self, request: dict[str, Any], title: str) -> GraphJob:
        from saelab.analysis.circuits.session import Session

        plain = json.loads(json.dumps(effects.answer(Session(), request)))
        self.job = GraphJob("job", request, title, "done", result=plain)
        return self.job

    def find(self, _: str) -> GraphJob:
        return self.job


def test_pinned_latents_are_changed_in_the_live_model(
    open_app: Open, circuit_runs: Path, monkeypatch: pytest.MonkeyPatch
):
    queue = AnswersAtOnce()
    monkeypatch.setattr(interventions, "job_queue", lambda: queue)
    found = graph_of(circuit_runs)
    latents = [name for name, node in zip(found.ids, found.graph.nodes, strict=True)
               if node.kind == "latent"][-2:]  # fmt: skip
    error = next(name for name in found.ids if name.startswith("error"))
    at = {"view": "circuit", "run": "heads", "graph": found.name}
    app = open_app(circuit_runs, **at, pins="|".join([*latents, error]))
    assert "1 other pinned node stays as it is" in drawn(app)
    app.button(key="circuit-run").click().run()
    page = drawn(app)
    assert "Without the 2 latents, logit &#x27;dog&#x27; - mean logit goes from" in page
    assert "Next tokens before and after" in page
    app.segmented_control(key="circuit-mode").set_value("scale").run()
    assert "Without the 2 latents" not in drawn(app)
    app.button(key="circuit-run").click().run()
    assert "With the 2 latents times 2.0" in drawn(app)


def test_the_live_value_is_the_graphs_until_a_latent_is_changed(circuit_runs: Path):
    from saelab.analysis.circuits.intervene import Change

    found = graph_of(circuit_runs)
    hosts = hosts_of(found, circuit_runs)
    effect = measure(found.graph, hosts, Change(()), found.path)
    assert effect.before == effect.after == pytest.approx(found.graph.nodes[-1].value, abs=1e-4)
    node = [n for n in found.graph.nodes if n.kind == "latent"][-1]
    place = (node.name, node.latent or 0, node.position or 0)
    changed = measure(found.graph, hosts, Change((place,)), found.path)
    assert changed.before == effect.before
    assert changed.after != effect.after
    assert sum(p for _, p, _, _, _ in changed.tokens) <= 1 + 1e-6


def test_after_a_model_is_loaded_garbage_is_not_sought_among_its_objects(circuit_runs: Path):
    import gc

    from feature_browser.live import model

    model._model.clear()
    model._live.clear()
    frozen = gc.get_freeze_count()
    model.live_run(next(iter(read_catalogue(circuit_runs).runs.values())))
    assert gc.get_freeze_count() - frozen > 10 * len(gc.get_objects())


def test_a_graph_of_other_tokens_is_not_run(circuit_runs: Path):
    from saelab.analysis.circuits.intervene import Change

    found = graph_of(circuit_runs)
    hosts = hosts_of(found, circuit_runs)
    for ids in ([0, 1], None, [10**9] * 8, "text"):
        graph = replace(found.graph, facts=found.graph.facts | {"token_ids": ids})
        with pytest.raises(UsageError, match="are not those of"):
            measure(graph, hosts, Change(()), found.path)


def test_a_latents_graph_is_measured_by_the_latents_live_value(circuit_runs: Path):
    from saelab.analysis.circuits.intervene import Change

    found = graph_of(circuit_runs)
    hosts = hosts_of(found, circuit_runs)
    nodes = [n for n in found.graph.nodes if n.kind == "latent"]
    node = next(n for n in reversed(nodes) if n.name == "heads")
    facts = dict(found.graph.facts) | {"target": node.label()}
    facts.pop("token")
    own = replace(found.graph, facts=facts)
    earlier = next(n for n in nodes if n.name == "topk" and n.position == node.position)
    place = (earlier.name, earlier.latent or 0, earlier.position or 0)
    effect = measure(own, hosts, Change((place,)), found.path)
    assert effect.before == pytest.approx(node.value, rel=1e-4)
    assert effect.after != effect.before
    assert effect.tokens == []

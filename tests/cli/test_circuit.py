"""`saelab circuit` as a user meets it."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import small_config

from saelab.analysis.circuits.graph_file import load_graph_hdf5
from saelab.analysis.circuits.graph_json import load_graph
from saelab.cli import main
from saelab.training.loop import train

PROMPT = "the big cat sat on a red"


@pytest.fixture(scope="module")
def runs(small_run, small_store, tmp_path_factory):
    """One SAE on the stream, and one on the next layer's heads."""
    directory = tmp_path_factory.mktemp("circuit")
    config = small_config(small_store, site="blocks.1.attn.hook_z")
    heads = train(config, out=directory / "heads")
    return shutil.copytree(small_run.path, directory / "stream"), heads.path


def circuit(*arguments: object) -> int:
    return main(["circuit", *map(str, arguments), "--device", "cpu"])


def test_a_circuit_is_printed_and_written_under_the_first_run(runs, capsys):
    assert circuit(*runs, "--prompt", PROMPT, "--target", "dog", "--top", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    path = runs[0] / "circuits" / "big-cat-sat-on-a-red-to-dog.json"
    assert lines[-1] == str(path)
    assert lines[0].startswith("logit 'dog' - mean logit = ")
    assert sum("other pairs" in line for line in lines) == 5
    pruned, whole = load_graph(path), load_graph_hdf5(path.with_suffix(".h5"))
    assert len(pruned.nodes) < len(whole.nodes)
    assert pruned.facts["runs"] == [str(run) for run in runs]
    assert set(pruned.facts["saes"]) == {"stream", "heads"}
    assert whole.facts["attention"] == pruned.facts["attention"]
    for found in pruned.facts["attention"]:
        assert sum(found["by_kind"].values()) == pytest.approx(found["score"], abs=1e-9)
    value = pruned.facts["value"]
    assert whole.row_sums()[-1] == pytest.approx(value, abs=1e-4 * max(1.0, abs(value)))


def test_json_and_other_forms_are_written_on_request(runs, capsys, tmp_path):
    figure, other = tmp_path / "f.html", tmp_path / "g.json"
    extras = ("--figure", figure, "--circuit-tracer", other, "--against", "cat", "--json")
    assert circuit(*runs, "--prompt", PROMPT, "--target", "dog", *extras) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["facts"]["target"] == "logit 'dog' - logit 'cat'"
    assert values["counts"]["latents_left_out"] >= 0
    assert len(values["nodes"]) == 15
    assert "faithfulness" in values["facts"]["faithfulness"]
    assert json.loads(other.read_text())["metadata"]["prompt_tokens"][1] == "the"
    assert "plotly" in figure.read_text()


def test_what_was_left_out_and_how_many_latents_it_takes_are_printed(runs, capsys):
    few = ("--max-nodes", 10, "--stop-share", 1, "--n-members", 5, "--curve")
    assert circuit(*runs, "--prompt", PROMPT, "--target", "cat", *few) == 0
    lines = capsys.readouterr().out.splitlines()
    path = Path(lines[-1])
    for graph in (load_graph(path), load_graph_hdf5(path.with_suffix(".h5"))):
        counts = graph.counts
        assert counts["latents"] + counts["latents_left_out"] == counts["active_latents"]
        said = (
            f"10 of {counts['active_latents']} active latents ({counts['influence_left_out']:.1%}"
        )
        assert said in "".join(lines)
        assert [judged["n_members"] for judged in graph.facts["curve"][:2]] == [5, 10]
    assert f"{load_graph(path).counts['pruned_influence']:.1%} of the influence dropped" in "".join(
        lines
    )
    assert sum(line.startswith(("     5 of them:", "    10 of them:")) for line in lines) == 4


def test_where_saes_are_not_applied_is_said_by_itself(runs, capsys):
    assert circuit(*runs, "--prompt", PROMPT, "--target", "dog", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    (place,) = values["left_out"]
    assert (place["position"], place["token"]) == (0, "<bos>")
    assert set(place["saes"]) == {"stream", "heads"}
    assert not any(node["node"].endswith("@0") for node in values["nodes"])
    # Second method: the leaves of the whole graph.
    whole = load_graph_hdf5(Path(values["path"]).with_suffix(".h5"))
    given = whole.attributions()
    at_bos = [i for i, node in enumerate(whole.nodes) if node.position == 0]
    assert not any(whole.nodes[i].kind == "latent" for i in at_bos)
    assert place["attribution"] == pytest.approx(given[at_bos].sum(), abs=1e-5)


def test_a_circuit_is_judged_beside_chance_and_an_empty_one_is_said_to_be(runs, capsys):
    assert circuit(*runs, "--prompt", PROMPT, "--target", "dog") == 0
    out = capsys.readouterr().out
    assert out.count("As many by chance: ") == 2
    assert "Integrated gradients sum to what the latents do, but for" in out
    nothing = ("--node-threshold", 0, "--n-members", 0)
    assert circuit(*runs, "--prompt", PROMPT, "--target", "dog", *nothing) == 0
    lines = capsys.readouterr().out.splitlines()
    judged = load_graph(Path(lines[-1])).facts["faithfulness"]
    assert judged["faithfulness"] is None
    assert "Live model, the graph's latents: No latent is in the circuit" in "\n".join(lines)
    assert "  Pruning left no latent: raise --node-threshold or --max-nodes." in lines


def test_a_latents_value_is_explained_too(runs, capsys):
    assert circuit(*runs, "--prompt", PROMPT, "--target", "mat", "--n-members", 0) == 0
    capsys.readouterr()
    whole = load_graph_hdf5(runs[0] / "circuits" / "big-cat-sat-on-a-red-to-mat.h5")
    node = next(n for n in reversed(whole.nodes) if n.kind == "latent" and n.name == "heads")
    assert (
        circuit(*runs, "--prompt", PROMPT, "--latent", f"heads:{node.latent}@{node.position}") == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"heads {node.latent} @{node.position} = {node.value:.3f}"
    name = f"big-cat-sat-on-a-red-to-heads-{node.latent}-{node.position}.json"
    assert load_graph(runs[0] / "circuits" / name).nodes[-1].kind == "target"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "the zebra"), "does not know “zebra”; use words of its vocabulary"),
        (("--prompt", " ".join(["cat"] * 40)), "has 41 tokens, 9 more than the 32"),
        (("--prompt", PROMPT, "--target", "zebra"), "“zebra” is not one token of"),
        (("--prompt", PROMPT, "--target", "cat", "--against", "cat"), "are the same; give two"),
        (("--prompt", PROMPT, "--model", "tiny"), "was trained on"),
    ],
)
def test_bad_input_is_one_sentence(runs, capsys, arguments, message):
    assert circuit(runs[0], *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_refused_prompt_is_named_and_the_others_are_explained(runs, capsys, tmp_path):
    def asked(*prompts):
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        few = ("--n-latents", 10, "--n-members", 0, "--n-interventions", 0, "--n-attention", 0)
        return circuit(runs[0], "--prompts", file, *few, "--json")

    others = PROMPT, "a dog sat on the big red mat"
    assert asked(*others) == 0
    alone = capsys.readouterr()
    assert "left out" not in alone.err
    assert asked("the", others[0], "the zebra sat", others[1]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads(alone.out)
    short, unknown = [line for line in said.err.splitlines() if "is left out" in line]
    assert short.startswith(
        "Note: prompt 1 of 4, “the”, is left out: --n-latents 10 is more than the graph's "
    )
    assert unknown.startswith("Note: prompt 3 of 4, “the zebra sat”, is left out: ")
    assert "“zebra”" in unknown
    assert asked("the", "the zebra sat") == 2
    error = capsys.readouterr().err
    assert "No prompt can be explained; prompt 1 of 2, “the”: --n-latents" in error


def test_a_run_given_twice_is_refused(runs, capsys):
    assert circuit(runs[0], runs[0], "--prompt", PROMPT) == 2
    assert "given twice" in capsys.readouterr().err


def test_a_run_is_required(capsys):
    assert circuit("--prompt", PROMPT) == 2
    assert "RUN is missing" in capsys.readouterr().err


def test_a_prompt_is_required(runs, capsys):
    assert circuit(runs[0]) == 2
    assert "Nothing is asked: give --prompt TEXT" in capsys.readouterr().err


def test_one_choice_of_judged_latents_is_enough(runs, capsys):
    both = ("--threshold", 0.1, "--n-latents", 5)
    assert circuit(runs[0], "--prompt", PROMPT, *both) == 2
    assert "give one of them" in capsys.readouterr().err

"""Measuring a run on a text of one's choice: all of it, beside the run's own figures."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import TEXT, WORDS

from saelab.activations.arrays import write_arrays
from saelab.activations.corpus import load_corpus
from saelab.activations.forward import row_mask
from saelab.cli import main
from saelab.config import UsageError
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.other_text import TextOptions, other_text
from saelab.host.host import Host
from saelab.host.text import half_by_context, stream
from saelab.training.config import TrainConfig
from saelab.training.loop import train
from saelab.training.run import Run


def fresh(run, directory):
    return Run(shutil.copytree(run.path, directory / "run"))


@pytest.fixture
def cats(tmp_path):
    """Documents in which every "cat" is labelled, and half of the documents."""
    draw = np.random.default_rng(0)
    rows = []
    for i in range(120):
        text = " ".join(draw.choice(WORDS[2:], 12).tolist())
        at = [n for n in range(len(text)) if f" {text} "[n : n + 5] == " cat "]
        spans = [{"start": n, "end": n + 3, "label": "cat"} for n in at]
        rows.append({"text": text, "spans": spans, "labels": {"even": i % 2 == 0}})
    rows[0]["descriptions"] = {"cat": "The word cat."}
    path = tmp_path / "cats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_all_of_another_text_is_measured_and_saved_beside_the_runs_own(
    small_run, random_lm, cats, tmp_path
):
    run = fresh(small_run, tmp_path)
    own = evaluate(run, random_lm)
    corpus = other_text(run, random_lm, cats)
    result = evaluate(run, random_lm, corpus=corpus)
    whole = load_corpus(cats, random_lm, context_length=8, split="all")
    counted = row_mask(random_lm, whole.read(0, whole.available(10**6)).tokens).sum()
    assert result.reconstruction["n_tokens"] == counted == 120 * 12
    assert run.evaluation("reconstruction") == json.loads(json.dumps(own.reconstruction))
    (directory,) = (path.parent for path in run.path.glob("evaluation/*/summary.json"))
    assert directory.name.startswith("cats-")
    for name in run.evaluation("summary", text=directory.name)["files"]:
        saved = run.evaluation(name, text=directory.name)
        assert saved["made"]["corpus"]["source"] == cats
        assert saved["made"]["corpus"]["split"] == "all"
    saved = run.evaluation("recovery", text=directory.name)["features"]
    assert {f["label"]: f["description"] for f in saved} == {
        "cat": "The word cat.", "even": "Labelled even.",
    }  # fmt: skip


def test_a_word_is_found_in_the_activations_and_a_coin_is_not(small_run, random_lm, cats, tmp_path):
    run = fresh(small_run, tmp_path)
    result = evaluate(run, random_lm, corpus=other_text(run, random_lm, cats))
    found = {feature.label: feature for feature in result.recovery.features}
    assert found["cat"].probe_f1 > 0.95
    assert found["even"].probe_auroc < 0.65


def test_halves_share_no_document(small_run, random_lm, cats, tmp_path):
    run = fresh(small_run, tmp_path)
    corpus = other_text(run, random_lm, cats)
    halves = {True: set(), False: set()}
    for batch in stream(Host.of_run(run, random_lm), corpus, n_tokens=10_000, batch_size=7):
        document = np.broadcast_to(batch.contexts.document[:, None], batch.mask.shape)
        document = document[batch.mask.numpy()]
        chosen = half_by_context(batch)
        for half, seen in halves.items():
            seen |= set(document[chosen == half].tolist())
    assert not halves[True] & halves[False]
    assert min(len(seen) for seen in halves.values()) > 30
    # Rows that alternate do not end up in one half.
    assert {number % 2 for number in halves[True]} == {0, 1}


def test_of_the_runs_own_text_what_was_held_out_is_measured(small_run, random_lm, tmp_path):
    run = fresh(small_run, tmp_path)
    source = run.provenance()["corpus"]["source"]
    result = evaluate(run, random_lm, corpus=other_text(run, random_lm, source))
    own = evaluate(run, random_lm)
    assert result.reconstruction == own.reconstruction
    assert not list(run.path.glob("evaluation/*/"))


def test_the_training_text_is_not_measured_as_another(small_run, random_lm, tmp_path):
    run = fresh(small_run, tmp_path)
    copy = tmp_path / "copy.txt"
    copy.write_text(TEXT)
    with pytest.raises(UsageError, match=r"is the text that .* was trained on; name it"):
        other_text(run, random_lm, str(copy))
    source = run.provenance()["corpus"]["source"]
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"id": "text.txt", "labels": {"a": true}}\n')
    with pytest.raises(UsageError, match="cut into other contexts"):
        other_text(run, random_lm, source, options=TextOptions(labels=(str(labels),)))


def test_a_text_too_short_to_hold_any_out_can_be_measured(small_run, random_lm, tmp_path):
    run = fresh(small_run, tmp_path)
    short = tmp_path / "short.txt"
    short.write_text("the big cat")
    result = evaluate(run, random_lm, corpus=other_text(run, random_lm, str(short)))
    assert result.reconstruction["n_tokens"] == 3


def test_the_command_line_measures_another_text(small_run, cats, tmp_path, capsys):
    run = fresh(small_run, tmp_path)
    command = ["evaluate", str(run.path), "--suite", "core", "--device", "cpu"]
    assert main([*command, "--text", cats]) == 0
    shown = capsys.readouterr().out
    assert "cat " in shown
    assert shown.strip().splitlines()[-1].endswith("cats-" + shown.strip()[-8:])
    assert main([*command, "--labels", "x"]) == 2
    assert "belong to the text that --text names" in capsys.readouterr().err


def test_a_run_of_arrays_reads_no_text(tmp_path, capsys):
    store = write_arrays(tmp_path / "store", {"x": torch.randn(200, 4)})
    sae = {"variant": "topk", "d_sae": 8, "k": 2}
    values = {"sae": sae, "activations": store, "site": "x", "n_tokens": 400, "batch_size": 50}
    train(TrainConfig.model_validate(values), out=tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "--text", "a.txt"]) == 2
    assert "leave out --text" in capsys.readouterr().err

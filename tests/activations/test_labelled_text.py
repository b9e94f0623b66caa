"""Labels and roles of a text, from its rows to the store's and back from what a store recorded."""

import json
import shutil

import numpy as np
import pytest

from saelab.activations.corpus import PADDING, load_corpus, recorded_corpus
from saelab.activations.forward import row_mask
from saelab.activations.harvest import HarvestOptions, harvest
from saelab.activations.store import ActivationStore
from saelab.activations.verify import verify
from saelab.cli import main
from saelab.config import UsageError
from saelab.lm.load import load_language_model

HOOK = "blocks.0.hook_resid_post"
WORDS = ["the", "big", "cat", "sat", "on", "a", "red", "mat", "and", "dog", "ran", "under", "tree"]
CHATML = (
    "{% for m in messages %}{{ '<bos> ' + m['role'] + ' : ' + m['content'] + ' . ' }}{% endfor %}"
)


def words(draw, n):
    return " ".join(draw.choice(WORDS, n).tolist())


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def labelled(tmp_path):
    """Documents with a label of their own and spans at random characters, and what they say."""
    draw = np.random.default_rng(0)
    rows = []
    for i in range(90):
        text = words(draw, int(draw.integers(3, 40)))
        bounds = [sorted(draw.integers(0, len(text) + 1, 2).tolist()) for _ in range(2)]
        spans = [{"start": a, "end": b, "label": "x"} for a, b in bounds if a < b]
        rows.append({"text": text, "labels": {"kind": i % 3, "odd": i % 2 == 1}, "spans": spans})
    return rows, write(tmp_path / "text.jsonl", rows)


def truth(row, lm):
    """Names of the labels of each token of a document, from its words' own places."""
    out, at = [], 0
    for word in row["text"].split(" "):
        inside = set(range(at, at + len(word)))
        here = {f"kind={row['labels']['kind']}"} | ({"odd"} if row["labels"]["odd"] else set())
        for span in row["spans"]:
            here |= {"x"} if inside & set(range(span["start"], span["end"])) else set()
        at += len(word) + 1
        out.append((lm.tokenizer.encode(word)[0], frozenset(here)))
    return out


@pytest.mark.parametrize("split", ["train", "held-out", "all"])
def test_every_token_has_the_labels_of_its_characters(random_lm, labelled, split):
    rows, source = labelled
    corpus = load_corpus(source, random_lm, context_length=8, split=split)
    names = np.array(corpus.label_names)
    assert set(names) == {"kind=0", "kind=1", "kind=2", "odd", "x"}
    contexts = corpus.read(0, corpus.available(10**6))
    assert contexts.labels is not None
    expected = [truth(row, random_lm) for row in rows]
    windows = {
        (number, tuple(part)): 0
        for number, tokens in enumerate(expected)
        for part in (tokens[i : i + 7] for i in range(0, len(tokens), 7))
    }
    for context, number, table in zip(
        contexts.tokens.tolist(), contexts.document.tolist(), contexts.labels, strict=True
    ):
        real = [p for p, token in enumerate(context) if token not in (0, PADDING)]
        read = tuple((context[p], frozenset(names[table[p]].tolist())) for p in real)
        windows[(number, read)] += 1
        assert not table[context.index(0)].any()
    found = sum(windows.values())
    assert found == len(contexts.tokens)
    if split == "all":
        assert all(windows.values())


def test_a_store_holds_the_labels_of_its_rows(random_lm, labelled, tmp_path):
    _, source = labelled
    corpus = load_corpus(source, random_lm, context_length=8)
    options = HarvestOptions(n_tokens=600, dtype="float32")
    store = harvest(random_lm, [HOOK], corpus, out=tmp_path / "store", options=options)
    assert store.manifest.label_names == corpus.label_names
    assert verify(tmp_path / "store") == []
    contexts = corpus.read(0, store.manifest.n_contexts)
    assert contexts.labels is not None
    assert store.manifest.corpus is not None
    for unit in store.units:
        columns = store.tokens(unit)
        assert columns.labels is not None
        assert np.array_equal(columns.labels, contexts.labels[columns.context, columns.position])
    again = recorded_corpus(store.manifest.corpus, random_lm, "train", 8)
    first = again.read(0, 20).labels
    assert first is not None
    assert np.array_equal(first, contexts.labels[:20])
    assert again.label_descriptions == corpus.label_descriptions


def test_labels_that_have_changed_are_refused_unless_the_store_keeps_them(
    random_lm, labelled, tmp_path
):
    rows, source = labelled
    other = write(tmp_path / "labels.jsonl", [{"labels": {"n": i % 2}} for i in range(len(rows))])
    corpus = load_corpus(source, random_lm, context_length=8, labels=[other])
    options = HarvestOptions(n_tokens=600, dtype="float32")
    store = harvest(random_lm, [HOOK], corpus, out=tmp_path / "store", options=options)
    facts = store.manifest.corpus
    assert isinstance(facts, dict)
    kept = recorded_corpus(facts, random_lm, "held-out", 8, kept=store.path).read(0, 3)
    write(tmp_path / "labels.jsonl", [{"labels": {"n": 1}} for _ in rows])
    same = recorded_corpus(facts, random_lm, "held-out", 8, kept=store.path).read(0, 3)
    assert same.labels is not None
    assert kept.labels is not None
    assert np.array_equal(same.labels, kept.labels)
    with pytest.raises(UsageError, match="has changed since it was harvested"):
        recorded_corpus(facts, random_lm, "held-out", 8).read(0, 3)


def test_contexts_of_a_document_are_grouped_and_long_ones_in_stretches(random_lm, tmp_path):
    draw = np.random.default_rng(0)
    rows = [{"text": words(draw, 7 * n), "labels": {"a": n == 2}} for n in [*[2] * 30, 100]]
    corpus = load_corpus(
        write(tmp_path / "t.jsonl", rows), random_lm, context_length=8, split="all"
    )
    contexts = corpus.read(0, corpus.available(10**6))
    assert contexts.group is not None
    for number, row in enumerate(rows):
        group = contexts.group[contexts.document == number]
        assert len(np.unique(group)) == (1 if row["labels"]["a"] else -(-100 // 16))
    assert len(np.unique(contexts.group)) == 30 + 7
    plain = [{"text": row["text"]} for row in rows]
    corpus = load_corpus(write(tmp_path / "p.jsonl", plain), random_lm, context_length=8)
    assert corpus.read(0, 5).group is None


@pytest.fixture(scope="module")
def chat_lm(checkpoint, tmp_path_factory):
    """The random checkpoint with a chat template of words that it knows."""
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(checkpoint, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = CHATML.replace(" : ", " sat ")
    tokenizer.save_pretrained(directory)
    return load_language_model(str(directory), device="cpu")


@pytest.fixture
def conversations(tmp_path):
    draw = np.random.default_rng(0)
    turns = ["the", "dog"]
    rows = [
        {
            "messages": [
                {"role": turns[i % 2], "content": words(draw, int(draw.integers(1, 9)))}
                for i in range(4)
            ]
        }
        for _ in range(60)
    ]
    return rows, write(tmp_path / "chat.jsonl", rows)


def test_rows_are_those_of_the_chosen_roles_and_the_model_reads_all(
    chat_lm, conversations, tmp_path
):
    rows, source = conversations
    corpus = load_corpus(source, chat_lm, context_length=24, roles=["dog"])
    everybody = load_corpus(source, chat_lm, context_length=24)
    assert corpus.label_names == ("role=the", "role=dog", "role=template")
    contexts, whole = (c.read(0, c.available(40)) for c in (corpus, everybody))
    assert np.array_equal(contexts.tokens, whole.tokens)
    mask = row_mask(chat_lm, contexts.tokens, contexts.columns)
    assert np.array_equal(mask, row_mask(chat_lm, whole.tokens) & whole.labels[..., 1])
    options = HarvestOptions(n_tokens=200, dtype="float32")
    store = harvest(chat_lm, [HOOK], corpus, out=tmp_path / "store", options=options)
    full = harvest(chat_lm, [HOOK], everybody, out=tmp_path / "full", options=options)
    columns = store.tokens(0)
    assert columns.labels[:, 1].all()
    assert columns.excluded["role"] > columns.excluded["special"] > 0
    # The same rows, whoever else's are stored beside them.
    mine, theirs = (_by_place(s) for s in (store, full))
    shared = mine.keys() & theirs.keys()
    assert len(shared) > 50
    assert all(np.allclose(mine[place], theirs[place], atol=1e-5) for place in shared)
    assert {place for place in theirs if place in mine} == shared
    # A document's content words, in order, are what its rows are.
    first = columns.document == columns.document[0]
    order = np.lexsort((columns.position[first], columns.context[first]))
    said = [
        word
        for message in rows[int(columns.document[0])]["messages"][1::2]
        for word in message["content"].split()
    ]
    ids = [chat_lm.tokenizer.encode(word)[0] for word in said]
    assert columns.token[first][order].tolist() == ids[: int(first.sum())]


def _by_place(store):
    columns, rows = store.tokens(0), store.site(HOOK).rows(0, store.unit_rows[0])
    return {
        (tuple(columns.contexts[context]), position): row.numpy()
        for context, position, row in zip(columns.context, columns.position, rows, strict=True)
    }


def test_a_run_on_one_role_is_evaluated_on_that_role(chat_lm, conversations, tmp_path):
    from conftest import small_config

    from saelab.evaluation.evaluate import evaluate
    from saelab.training.loop import train

    _, source = conversations
    corpus = load_corpus(source, chat_lm, context_length=24, roles=["dog"])
    options = HarvestOptions(n_tokens=200, dtype="float32")
    store = harvest(chat_lm, [HOOK], corpus, out=tmp_path / "store", options=options)
    run = train(small_config(store, n_tokens=400), out=tmp_path / "run")
    held = load_corpus(source, chat_lm, context_length=24, roles=["dog"], split="held-out")
    contexts = held.read(0, held.available(10**6))
    counted = int(row_mask(chat_lm, contexts.tokens, contexts.columns).sum())
    result = evaluate(run, chat_lm, n_tokens=10_000)
    assert result.reconstruction["n_tokens"] == counted < row_mask(chat_lm, contexts.tokens).sum()


def test_the_command_line_takes_labels_and_roles(chat_lm, conversations, tmp_path, capsys):
    rows, source = conversations
    labels = write(tmp_path / "labels.jsonl", [{"labels": {"n": i % 2}} for i in range(len(rows))])
    command = ["harvest", "--model", chat_lm.info.name, "--sites", HOOK, "--text", source]
    command += ["--n-tokens", "100", "--context-length", "24", "--out", str(tmp_path / "s")]
    command += ["--device", "cpu", "--roles", "dog", "--labels"]
    assert main([*command, labels]) == 0
    names = ("n=0", "n=1", "role=the", "role=dog", "role=template")
    assert ActivationStore(tmp_path / "s").manifest.label_names == names
    assert main([*command, "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl does not exist; check --labels" in capsys.readouterr().err

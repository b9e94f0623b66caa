"""Labels of a text: where they are looked for, what columns they become, what is refused."""

import json

import numpy as np
import pytest
from lm.test_chat import TEMPLATES, tokenizer_with, tokens_of

from saelab.activations.annotate import Annotator
from saelab.activations.documents import Document, Origin
from saelab.activations.labelled import annotator_for
from saelab.config import UsageError
from saelab.lm.tokenizer import HuggingFaceTokenizer


def with_template(template=None):
    return HuggingFaceTokenizer(tokenizer_with(template))


def rows(*values, source="f.jsonl"):
    return [Document("", Origin(source, i + 1), row) for i, row in enumerate(values)]


def read(documents, *, labels=(), roles=(), tokenizer=None, **options):
    tokenizer = tokenizer or with_template()
    return annotator_for(lambda: iter(documents), tokenizer, labels=labels, roles=roles, **options)


def on(annotator, document):
    """The names of the columns that are on at each character, each of which is a token."""
    text = annotator.text(document)
    offsets = np.arange(len(text))[:, None] + [0, 1]
    found = annotator.annotate(document, text, offsets)
    table, names = found["labels"], np.array(annotator.label_names)
    assert table.shape == (len(text), len(names))
    return text, [set(names[row].tolist()) for row in table]


def written(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def test_plain_rows_need_no_annotator():
    assert read(rows({"text": "a"}, {"text": "b", "label": 1})) is None
    assert read([Document("a book", Origin("book.txt"))]) is None


def test_labels_and_spans_of_rows_become_columns_with_names_and_descriptions():
    documents = rows(
        {"text": "Al ran", "labels": {"mood": "calm", "spam": False}},
        {"text": "Bo\r\nsat", "labels": {"mood": "glad"},
         "spans": [{"start": 4, "end": 7, "label": "verb"}],
         "descriptions": {"verb": "A verb in the past."}},
    )  # fmt: skip
    found = read(documents)
    assert isinstance(found, Annotator)
    assert found.label_names == ("mood=calm", "mood=glad", "spam", "verb")
    assert found.label_descriptions["verb"] == "A verb in the past."
    assert found.label_descriptions["mood=glad"] == "mood is glad."
    assert on(found, documents[0]) == ("Al ran", [{"mood=calm"}] * 6)
    text, here = on(found, documents[1])
    assert text == "Bo\nsat"
    assert here == [{"mood=glad"}] * 3 + [{"mood=glad", "verb"}] * 3


def test_tokens_without_a_text_are_joined_by_spaces():
    (document,) = rows({"tokens": ["Al", "ran"], "labels": {"pos": ["N", "V"]}})
    text, here = on(read([document]), document)
    assert text == "Al ran"
    assert here == [{"pos=N"}] * 2 + [set()] + [{"pos=V"}] * 3


def test_fields_are_labels_where_they_are_named():
    documents = rows({"text": "a", "stars": 4, "labels": {"x": True}}, {"text": "b", "stars": 5})
    found = read(documents, labels=["stars"])
    assert found.label_names == ("x", "stars=4", "stars=5")
    assert read(documents, labels=["none"]).label_names == ()
    with pytest.raises(UsageError, match=r"f\.jsonl, line 1: the row has no field 'star'"):
        read(documents, labels=["star"])


def test_a_file_goes_by_line_or_by_id(tmp_path):
    documents = rows({"text": "a", "id": 7}, {"text": " "}, {"text": "b", "id": "x"})
    by_line = written(tmp_path / "lines.jsonl", *({"labels": {"n": i}} for i in range(3)))
    assert read(documents, labels=[by_line]).label_names == ("n=0", "n=2")
    by_id = written(
        tmp_path / "ids.jsonl", {"id": "x", "labels": {"n": 1}}, {"id": 7, "labels": {"n": 2}}
    )
    found = read([documents[0], documents[2]], labels=[by_id])
    assert on(found, documents[0]) == ("a", [{"n=2"}])
    assert on(found, documents[2]) == ("b", [{"n=1"}])
    spans = [{"start": 0, "end": 3, "label": "who"}]
    books = written(tmp_path / "books.jsonl", {"id": "alice.txt", "spans": spans})
    book = Document("Ali", Origin("/books/alice.txt"))
    assert on(read([book], labels=[books]), book) == ("Ali", [{"who"}] * 3)


def test_other_labels_are_another_digest(tmp_path):
    documents = rows({"text": "a"}, {"text": "b"})
    digests = set()
    for value in (1, 2):
        path = written(tmp_path / "l.jsonl", {"labels": {"n": value}}, {"labels": {}})
        digests.add(read(documents, labels=[path]).facts["labels_sha256"])
    assert len(digests) == 2
    assert read(documents, labels=[path]).facts["labels_sha256"] in digests


CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}


def test_roles_are_labels_and_choose_rows():
    tokenizer = with_template(TEMPLATES["chatml"])
    (document,) = rows({**CHAT, "labels": {"kind": "greeting"}})
    found = read([document], roles=["assistant", "template"], tokenizer=tokenizer)
    assert found.label_names == ("kind=greeting", "role=user", "role=assistant", "role=template")
    text = found.text(document)
    offsets = tokens_of(tokenizer_with(None), text)
    columns = found.annotate(document, text, offsets)
    wanted = [text[a:b] for (a, b), row in zip(offsets, columns["row"], strict=True) if row]
    assert "yo" in "".join(wanted)
    assert "hi" not in "".join(wanted)
    table = columns["labels"]
    assert table[:, 0].all()
    assert (table[:, 1:].sum(axis=1) == 1).all()
    assert np.array_equal(columns["row"], table[:, 2] | table[:, 3])
    assert set(found.columns) == {"labels", "row"}
    plain = read([document], tokenizer=tokenizer)
    assert set(plain.columns) == {"labels"}


def test_a_text_beside_messages_is_the_text_unless_roles_are_asked_for():
    tokenizer = with_template(TEMPLATES["chatml"])
    (document,) = rows({**CHAT, "text": "plain"})
    assert read([document], tokenizer=tokenizer) is None
    assert (
        read([document], roles=["user"], tokenizer=tokenizer)
        .text(document)
        .startswith("<|im_start|>user")
    )


def many(values):
    return rows(*({"text": "a", "labels": {"review": f"words {i}"}} for i in range(values)))


def test_free_text_given_as_a_label_is_refused_with_its_count():
    with pytest.raises(UsageError) as caught:
        read(many(5000))
    assert "The label 'review' has 5000 different values, such as 'words 0'" in str(caught.value)
    assert len(read(many(1024)).label_names) == 1024


REFUSED = {
    "line 2: the row has no field 'messages'": (rows(CHAT, {"text": "a"}), (), ("user",)),
    "Nobody in the text has the role 'assitant'": (rows(CHAT), (), ("assitant",)),
    "line 1: messages are a list": (rows({"messages": []}), (), ()),
    "line 1: the row has no field 'text'": (rows({"body": "a"}), ("body",), ()),
    "'descriptions' describe 'x', which is no label": (
        rows({"text": "a", "labels": {"y": True}, "descriptions": {"x": "?"}}), (), ()),
    "'descriptions' holds 3": (rows({"text": "a", "labels": {}, "descriptions": 3}), (), ()),
    "give fields and at most one file": (rows({"text": "a"}), ("a.jsonl", "b.jsonl"), ()),
    "or none alone": (rows({"text": "a"}), ("none", "a"), ()),
    "does not exist; check --labels": (rows({"text": "a"}), ("nowhere.jsonl",), ()),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_meant_is_refused_before_anything_is_tokenised(message):
    documents, labels, roles = REFUSED[message]
    with pytest.raises(UsageError) as caught:
        read(documents, labels=labels, roles=roles, tokenizer=with_template(TEMPLATES["chatml"]))
    assert message in str(caught.value)


def test_a_model_without_a_template_cannot_read_messages():
    with pytest.raises(UsageError, match="has no chat template"):
        read(rows(CHAT))


BAD_FILES = {
    "is none of id, labels, spans": [{"mood": "calm"}],
    "either every row has an 'id' or none": [{"id": "a"}, {"labels": {}}],
    "is that of": [{"id": "a"}, {"id": "a"}],
    "is neither text nor a number": [{"id": [1]}],
    "holds no labels": [],
    "has no row for its line": [{"labels": {}}],
    "no document with that line": [{}, {}, {}],
    "so each row of the text needs one": [{"id": "a"}],
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_a_file_of_labels_that_does_not_fit_is_refused(message, tmp_path):
    path = written(tmp_path / "labels.jsonl", *BAD_FILES[message])
    with pytest.raises(UsageError, match=message):
        read(rows({"text": "a"}, {"text": "b"}), labels=[path])


def test_a_file_by_lines_needs_one_file_of_rows(tmp_path):
    path = written(tmp_path / "labels.jsonl", {}, {})
    two = [*rows({"text": "a"}), *rows({"text": "b"}, source="g.jsonl")]
    for documents in (two, [Document("a", Origin("book.txt"))]):
        with pytest.raises(UsageError, match="give its rows an 'id'"):
            read(documents, labels=[path])


def test_a_streams_labels_must_show_early():
    documents = rows(*({"text": "a", "labels": {"n": i // 10_000}} for i in range(10_001)))
    found = read(documents, stream=True)
    assert found.label_names == ("n=0",)
    with pytest.raises(UsageError, match="line 10001: the label 'n=1' is in none of the first"):
        on(found, documents[-1])

"""Text as people have it: every reader takes what is clear and says where what is not, is."""

import gzip
import json

import datasets
import pytest
from activations.store_cases import text_corpus

from saelab.activations import sources, text_files
from saelab.activations.corpus import PADDING
from saelab.activations.cutting import Cutter
from saelab.activations.sources import FileSource, hub_parts
from saelab.config import UsageError

WORDS = ("the cat sat .", "a dog ran .", "one girl sees two birds .")


def documents(path, text_field: str | None = "text", block=64, cutter=None):
    """The texts of a source in its own order."""
    source = FileSource(str(path), text_field, cutter, seed=0, block=block)
    found, number = [], 0
    while (shard := source.shard(number)) is not None:
        found += shard.documents
        number += 1
    assert shard is None
    found.sort(key=lambda each: each.number)
    return [each.document for each in found]


def texts(path, **options):
    return [document.text for document in documents(path, **options)]


def lines(rows, end="\n"):
    return "".join(json.dumps({"text": row}) + end for row in rows)


SPELLINGS = {
    "plain": ("a.jsonl", lines(WORDS).encode()),
    "a byte order mark": ("a.jsonl", lines(WORDS).encode("utf-8-sig")),
    "UTF-16": ("a.jsonl", lines(WORDS).encode("utf-16")),
    "UTF-16, the other way round": ("a.jsonl", b"\xfe\xff" + lines(WORDS).encode("utf-16-be")),
    "UTF-32": ("a.jsonl", lines(WORDS).encode("utf-32")),
    "Windows line ends": ("a.jsonl", lines(WORDS, "\r\n").encode()),
    "no line end at the end": ("a.jsonl", lines(WORDS).rstrip().encode()),
    "blank lines": ("a.jsonl", ("\n \n" + lines(WORDS, "\n\n")).encode()),
    "null and empty rows": (
        "a.jsonl",
        ('{"text": null}\n{"text": ""}\nnull\n' + lines(WORDS) + '{"text": " \\n"}\n').encode(),
    ),
    "ndjson": ("a.ndjson", lines(WORDS).encode()),
    "json-lines": ("A.JSON-LINES", lines(WORDS).encode()),
    "json": ("a.json", lines(WORDS).encode()),
    "packed": ("a.jsonl.gz", gzip.compress(lines(WORDS).encode())),
    "packed UTF-16": ("a.ndjson.gz", gzip.compress(lines(WORDS).encode("utf-16"))),
}


@pytest.mark.parametrize(("name", "content"), SPELLINGS.values(), ids=SPELLINGS)
def test_rows_are_the_same_however_they_are_spelt(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert texts(path) == list(WORDS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_plain_text_is_the_same_however_it_is_spelt(tmp_path, encoding, end):
    path = tmp_path / "a.txt"
    path.write_bytes(end.join(WORDS).encode(encoding))
    assert texts(path) == ["\n".join(WORDS)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"one\ntwo caf\xe9 au lait\n", "line 2: byte 0xe9 is not UTF-8"),
        ("a.txt", b"one\ntwo\n\xe2\x82", "line 3: byte 0xe2 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: byte 0xff is not UTF-8"),
        ("a.txt", "naïve\n".encode("utf-16-le"), "line 1: holds a NUL byte"),
        ("a.txt", b"\xff\xfea", "begins with the mark of utf-16 and is not"),
        ("a.txt.gz", b"no gzip", "cannot be read: Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"the end is missing" * 99, mtime=0)[:-9], "cannot be read"),
        ("a.jsonl", b'\n{"text": "a"}\n\n[1]\n', "line 4: the line is no JSON object, but a list"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "line 2: the line is not JSON"),
        ("a.jsonl", b"[" * 10**5, "line 1: the line is not JSON"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: the field 'text' holds a number, not text"),
        ("a.jsonl", b'{"text": ["a"]}\n', "line 1: the field 'text' holds a list, not text"),
        ("a.jsonl", b'{"txt": "a"}\n', "line 1: the row has no field 'text', only 'txt'; name"),
    ],
)
def test_what_is_not_clear_is_refused_with_file_and_line(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said) as error:
        documents(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_lines_are_counted_across_chunks_and_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "CHUNK", 100)
    path = tmp_path / "a.jsonl"
    path.write_text(lines([f"row {i} " + "x" * (i % 37) for i in range(200)]))
    found = documents(path)
    assert [document.origin.line for document in found] == list(range(1, 201))
    assert [document.text.split()[1] for document in found] == [str(i) for i in range(200)]
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(UsageError, match="line 201: the line is not JSON"):
        documents(path)
    path.write_bytes(lines(["x"] * 99).encode() + b"\xff\n")
    with pytest.raises(UsageError, match="line 100: byte 0xff"):
        documents(path)


def test_half_of_a_surrogate_pair_is_replaced(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a \\ud800 b \\ud83d\\ude00"}\n')
    assert texts(path) == ["a \ufffd b \U0001f600"]


def test_other_fields_stay_with_the_document(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "the cat", "topic": "pets", "id": 7}\n')
    (document,) = documents(path, text_field="body")
    assert document.text == "the cat"
    assert document.fields == {"topic": "pets", "id": 7}
    assert str(document.origin) == f"{path}, line 1"
    (whole,) = documents(path, text_field=None)
    assert (whole.text, whole.fields["body"]) == ("", "the cat")


def test_a_directory_takes_every_kind_of_text_and_nothing_else(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text(WORDS[0])
    (tmp_path / "deep" / "b.NDJSON").write_text(lines([WORDS[1]]))
    (tmp_path / "c.md.gz").write_bytes(gzip.compress(WORDS[2].encode()))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "settings.json").write_text('{"no": "text"}')
    assert texts(tmp_path) == [WORDS[0], WORDS[2], WORDS[1]]


def test_blocks_of_a_long_text_are_the_text(random_lm, tmp_path):
    """Every stretch is read once, whatever the size of the blocks and wherever characters lie."""
    text = " ".join(f"the cat №{i} sat ." for i in range(400)) + "\r\n" * 3 + "the end é" * 9
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    cutter = Cutter(random_lm.tokenizer)
    assert cutter.usable
    for block in (50, 64, 333, 10**6):
        source = FileSource(str(path), "text", cutter, seed=0, block=block)
        order = source._blocks
        parts = [source._stretch(source._files[i], a, b) for i, a, b in order.tolist()]
        assert "".join(parts).replace(" ", "") == text.replace(" ", "")
        assert block > 10**5 or sum(bool(part) for part in parts) > 400 * 15 / block / 2
        encode = random_lm.tokenizer.encode
        assert [token for part in parts for token in encode(part)] == encode(text)


# Streams.


@pytest.fixture
def hub(monkeypatch):
    """What was asked of the datasets package, which gives these rows."""
    asked = []

    def give(rows):
        def load(name, config=None, split=None, *, streaming):
            assert streaming
            asked.append((name, config, split))
            return iter(rows)

        monkeypatch.setattr(datasets, "load_dataset", load)
        return asked

    return give


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("hf:wiki", ("wiki", None, "train")),
        ("hf:a/wiki:test", ("a/wiki", None, "test")),
        ("hf:allenai/c4:en:validation", ("allenai/c4", "en", "validation")),
        ("hf:allenai/c4:en:", ("allenai/c4", "en", "train")),
        ("hf:a:train[:10%]", ("a", None, "train[:10%]")),
        ("hf:a:en:train[5:10]", ("a", "en", "train[5:10]")),
    ],
)
def test_the_parts_of_a_hub_source(source, parts):
    assert hub_parts(source) == parts


@pytest.mark.parametrize("source", ["hf:", "hf:a:b:c:d", "hf::train"])
def test_a_hub_source_that_names_nothing_is_refused(random_lm, source):
    with pytest.raises(UsageError, match="is not hf:NAME"):
        text_corpus(source, random_lm)


def test_a_stream_reads_rows_as_files_do(random_lm, hub):
    rows = [{"body": None}, {"body": ""}, *({"body": "the cat sat .\r\n"} for _ in range(60))]
    asked = hub(rows)
    corpus = text_corpus("hf:a:en:test", random_lm, context_length=8, text_field="body")
    assert set(asked) == {("a", "en", "test")}
    assert corpus.n_contexts == 57
    assert corpus.facts["text_field"] == "body"


def test_a_bad_row_of_a_stream_is_named(random_lm, hub):
    hub([*({"text": "the cat"} for _ in range(30)), {"text": 5}])
    with pytest.raises(UsageError, match="hf:a, line 31: the field 'text' holds a number"):
        _ = text_corpus("hf:a", random_lm, context_length=8).n_contexts
    hub([{"sentence": "the cat"}])
    with pytest.raises(UsageError, match="line 1: the row has no field 'text', only 'sentence'"):
        text_corpus("hf:a", random_lm, context_length=8)


def test_a_missing_configuration_is_explained(random_lm, monkeypatch):
    def load(*_, **__):
        raise ValueError("Config name is missing.\nPlease pick one among: ['en', 'fr']")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UsageError, match="hf:allenai/c4:CONFIG:train"):
        text_corpus("hf:allenai/c4", random_lm)


@pytest.mark.parametrize("n_tokens", [1, 100, 999, 5000])
def test_an_endless_stream_gives_the_training_tokens_that_were_asked_for(
    random_lm, hub, n_tokens, monkeypatch
):
    monkeypatch.setattr(sources, "STREAM_DOCUMENTS", 8)
    hub({"text": "the cat sat . " * (1 + i % 7)} for i in iter(int, 1) if i == 0)
    corpus = text_corpus("hf:endless", random_lm, context_length=8, max_tokens=n_tokens)
    tokens = corpus.read(0, corpus.n_contexts).tokens
    rows = (tokens != PADDING).sum() - len(tokens)
    assert n_tokens <= rows
    assert rows < n_tokens + 20 * 40

"""JSON from anywhere is a value of bounded size or one sentence; sealed objects are as written."""

import json
import os

import pytest
from bounded import at_most
from hypothesis import given
from hypothesis import strategies as st

from saelab.config import UsageError
from saelab.formats.json_file import (
    MAX_DEPTH,
    parse_json,
    read_object,
    read_sealed_json,
    sealed,
    write_sealed_json,
)

NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_every_value_is_read_as_json_reads_it(value):
    raw = json.dumps(value).encode()
    assert parse_json(raw, "x") == json.loads(raw)


HOSTILE = {
    "nothing": b"",
    "half": b'{"a": 1',
    "nan": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "overflow": b'{"a": 1e999}',
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "65 bits": b'{"a": 36893488147419103232}',
    "twice": b'{"a": 1, "a": 2}',
    "deep": b"[" * 100_000,
    "deep and closed": b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    "deep objects": b'{"a":' * 100_000,
    "deep behind a text": b'["\\"[", ' + b"[" * 100 + b"]" * 100 + b"]",
    "lists": b"[" + b"[]," * 20_000_000 + b"[]]",
    "texts": b'["' + b'","' * 12_000_000 + b'"]',
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_one_sentence_in_bounded_memory(raw):
    with at_most(300), pytest.raises(UsageError) as caught:
        parse_json(raw, "f.json")
    assert str(caught.value).startswith("f.json is not whole JSON: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_bytes_that_are_not_utf8_are_named_by_byte_and_line_and_a_mark_is_no_text():
    with pytest.raises(UsageError, match=r"^f.json: byte 0xff is not UTF-8; save it as UTF-8\.$"):
        parse_json('{"a": 1}'.encode("utf-16"), "f.json")
    with pytest.raises(UsageError, match=r"^f.json, line 2: byte 0xe9 is not UTF-8"):
        parse_json(b'{\n"a": "\xe9"}\n', "f.json")
    assert parse_json('{"a": 1}'.encode("utf-8-sig"), "f.json") == {"a": 1}


def test_brackets_in_texts_are_no_nesting():
    value = {"a": "[" * 1000, "b": '\\"[{' * 500, "c\\": ["]"]}
    assert parse_json(json.dumps(value).encode(), "x") == value


@pytest.mark.parametrize("raw", [b"[1]", b'"x"', b"null", b"1.5"])
def test_only_an_object_is_an_object(tmp_path, raw):
    (tmp_path / "x.json").write_bytes(raw)
    with pytest.raises(UsageError, match=r"x\.json is not a JSON object: it holds"):
        read_object(tmp_path / "x.json")


def test_what_is_no_regular_file_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "loop", "zero", ".", "none"):
        with pytest.raises(UsageError, match=r"regular|cannot be opened|does not exist"):
            read_object(tmp_path / name)
    (tmp_path / "huge.json").touch()
    os.truncate(tmp_path / "huge.json", 10**12)
    with pytest.raises(UsageError, match="has 1,000,000,000,000 bytes"):
        read_object(tmp_path / "huge.json")


@given(st.dictionaries(st.text().filter(lambda name: name != "sha256"), VALUES, max_size=5))
def test_a_sealed_object_comes_back_whatever_its_keys(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("sealed") / "x.json"
    write_sealed_json(path, values)
    assert read_sealed_json(path) == values


def test_keys_that_become_texts_are_sealed_as_those(tmp_path):
    write_sealed_json(tmp_path / "x.json", {"by": {10: 1, 9: (2, 3)}})
    assert read_sealed_json(tmp_path / "x.json") == {"by": {"10": 1, "9": [2, 3]}}


def test_a_changed_value_is_noticed_and_an_object_without_a_seal_is_read(tmp_path):
    path = tmp_path / "x.json"
    write_sealed_json(path, {"fvu": 0.125, "n": [1, 2]})
    assert list(sealed({"a": 1})) == ["a", "sha256"]
    text = path.read_text()
    path.write_text(text.replace("0.125", "0.025"))
    with pytest.raises(UsageError, match=r"x\.json was altered.*delete that line"):
        read_sealed_json(path)
    path.write_text('{"fvu": 0.025}')
    assert read_sealed_json(path) == {"fvu": 0.025}

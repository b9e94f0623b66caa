"""Entries of an untrusted configuration and tensors of an untrusted file are checked when read."""

from pathlib import Path

import pytest
import torch
from sae.interop.cases import refusal

from saelab.sae.interop.contents import NamedTensors, Record

VALUES = {
    "k": 3,
    "name": "x",
    "on": True,
    "widths": [2, 4],
    "inner": {"k": 5},
    "half": 0.5,
    "null": None,
}
RECORD = Record(Path("cfg.json"), VALUES)


def test_entries_are_read_by_type():
    assert RECORD.integer("k") == 3
    assert RECORD.text("name") == "x"
    assert RECORD.flag("on", default=False) is True
    assert RECORD.integers("widths") == (2, 4)
    assert RECORD.record("inner").integer("k") == 5
    assert RECORD.number("half") == 0.5
    assert RECORD.number("k") == 3


@pytest.mark.parametrize("key", ["null", "absent"])
def test_an_absent_entry_and_a_null_are_the_same(key):
    assert RECORD.integer(key) is None
    assert RECORD.text(key) is None
    assert RECORD.flag(key, default=True) is True
    assert RECORD.integers(key) is None
    assert RECORD.number(key) is None
    assert RECORD.record(key).values == {}


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (Record.integer, "3"),
        (Record.integer, 3.0),
        (Record.integer, True),
        (Record.integer, -1),
        (Record.integer, 10**300),
        (Record.text, 3),
        (Record.text, ["x"]),
        (Record.record, [1]),
        (Record.record, "x" * 1000),
        (Record.integers, 3),
        (Record.integers, [1, "2"]),
        (Record.integers, [True]),
        (Record.number, True),
        (Record.number, "1"),
        (Record.number, float("nan")),
        (Record.number, float("inf")),
        (Record.number, 10**400),
        (lambda record, key: record.flag(key, default=False), "yes"),
        (lambda record, key: record.flag(key, default=False), 1),
    ],
)
def test_an_entry_of_another_type_is_refused(read, value):
    text = refusal(lambda: read(Record(Path("cfg.json"), {"key": value}), "key"))
    assert text.startswith("cfg.json: key is ")


WEIGHTS = NamedTensors(
    Path("w"),
    {
        "half": torch.tensor([[1.5, -2.0]], dtype=torch.float16),
        "brain": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "one": torch.tensor(7, dtype=torch.int32),
        "two": torch.tensor([3, 4]),
        "complex": torch.zeros(1, dtype=torch.complex64),
    },
)


def test_half_precision_is_upcast():
    assert torch.equal(WEIGHTS.matrix("half"), torch.tensor([[1.5, -2.0]]))
    assert torch.equal(WEIGHTS.vector("brain", 2), torch.tensor([1.5, -2.0]))


def test_single_and_several_whole_numbers_are_read():
    assert WEIGHTS.integers("one") == (7,)
    assert WEIGHTS.integers("two") == (3, 4)
    assert WEIGHTS.scalar("one") == 7.0


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda: WEIGHTS.vector("half"), "1 axes"),
        (lambda: WEIGHTS.matrix("brain"), "2 axes"),
        (lambda: WEIGHTS.vector("two"), "torch.int64"),
        (lambda: WEIGHTS.vector("brain", 3), "2 entries, but there are 3 latents"),
        (lambda: WEIGHTS.integers("half"), "whole numbers"),
        (lambda: WEIGHTS.scalar("two"), "one number"),
        (lambda: WEIGHTS.scalar("complex"), "one number"),
        (lambda: WEIGHTS.check_names({"half", "gone"}), "lacks gone"),
        (lambda: WEIGHTS.check_names({"half"}, {"brain", "one"}), "holds 'complex', 'two'"),
    ],
)
def test_tensors_of_another_kind_are_refused(read, words):
    assert words in refusal(read)

"""Text, counts and progress as a person reads them."""

import threading
import time
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from saelab import console
from saelab.console import (
    Bar,
    cells,
    duration,
    heard_by,
    isolated,
    printable,
    progress,
    shown,
    si,
    stage,
    visible,
)


@given(st.text(max_size=20))
@example("a\nb\t\r\x1b[31m\u2028\u202e\u200d")
@example("\x08\u0660")
def test_what_is_shown_stays_on_its_line_and_steers_no_terminal(text):
    line = shown(text)
    assert len(line.splitlines()) <= 1
    assert not [c for c in visible(text) if unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"}]
    assert [c for c in line if unicodedata.category(c) == "Cf"] in ([], ["\u2068", "\u2069"]) or (
        "<" in text or "⟨" in line
    )
    assert cells(text)[0].plain == line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", "cat"),
        ("日本", "日本"),
        ("שלם 12", "\u2068שלם 12\u2069"),
        ("سم", "\u2068سم\u2069"),
        ("ש<0xD7>", "\u2068ש\u2066<0xD7>\u2069\u2069"),
        ("abc\u202edef", "abc⟨202E⟩def"),
        ("\u2069א", "\u2068\u2066⟨2069⟩\u2069א\u2069"),
        ("“\u2068ש\u2069”", "\u2068“\u2068ש\u2069”\u2069"),
    ],
)
def test_text_from_right_to_left_is_set_apart(text, expected):
    assert isolated(text) == expected


@given(st.text(alphabet="aש<0xD7>\u202b\u202e\u2066\u2067\u2068\u2069", max_size=12))
def test_no_direction_reaches_beyond_a_text(text):
    depth = 0
    for character in isolated(text):
        assert character not in "\u202a\u202b\u202c\u202d\u202e"
        depth += (character in "\u2066\u2067\u2068") - (character == "\u2069")
        assert depth >= 0
    assert depth == 0


def test_a_message_of_several_lines_keeps_them():
    assert printable("one\n\ttwo\x1b[2J") == "one\n\ttwo⟨001B⟩[2J"


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7"), (512, "512"), (48_100, "48.1k"), (2_050_000, "2.05M")]
)
def test_counts_have_three_significant_figures(number, text):
    assert si(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (130, "2 min"), (9000, "2.5 h"), (2e5, "2.3 days")],
)
def test_a_time_to_wait_is_in_the_unit_a_person_would_choose(seconds, text):
    assert duration(seconds) == text


def test_what_an_earlier_process_did_says_nothing_about_the_speed_of_this_one(monkeypatch):
    bar = Bar("Harvest", 100, "tokens", done=90, before=90)
    monkeypatch.setattr(time, "monotonic", lambda: bar._started + 10)
    bar.advance(5)
    assert "(0.5 tokens/s, 10 s left)" in bar._line("")


def test_a_last_batch_beyond_the_total_is_still_100_percent():
    bar = Bar("Evaluate", 100, "tokens")
    bar.advance(106)
    assert bar._line("FVU 0.1").startswith("Evaluate: 100% (")
    assert ", 0 s left)  FVU 0.1" in bar._line("FVU 0.1")


def test_without_a_terminal_the_end_is_one_line_that_counts_this_process_alone(capsys):
    with progress("Harvest", 100, "tokens", done=40) as bar:
        bar.advance(60)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Harvest: 100 tokens in ")


def test_only_what_is_slow_is_told(monkeypatch, capsys):
    told = threading.Event()
    monkeypatch.setattr(console, "say", lambda _: told.set())
    monkeypatch.setattr(console, "SLOW", 0.0)
    with console.told_if_slow("loading ..."):
        assert told.wait(60)
    told.clear()
    monkeypatch.setattr(console, "SLOW", 3600.0)
    with console.told_if_slow("loading ..."):
        pass
    assert not told.is_set()


def test_a_listener_hears_stages_and_every_step_of_a_bar(capsys):
    heard = []
    stage("not yet")
    with heard_by(heard.append):
        stage("Load")
        with progress("Trace", 10, "latents", done=4) as bar:
            bar.advance(2)
    stage("no longer")
    told = [(step.title, step.done, step.total, step.unit) for step in heard]
    assert told == [("Load", 0, 0, ""), ("Trace", 0, 6, "latents"), ("Trace", 2, 6, "latents")]
    assert heard[-1].seconds >= 0

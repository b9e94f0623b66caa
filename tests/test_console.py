"""Counts and progress as a person reads them."""

import threading
import time

import pytest

from saelab import console
from saelab.console import Bar, duration, progress, si


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


def test_what_an_earlier_process_did_says_nothing_about_the_speed_of_this_one():
    bar = Bar("Harvest", 100, "tokens", done=90, before=90, _started=time.monotonic() - 10)
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
    monkeypatch.setattr(console, "note", lambda _: told.set())
    monkeypatch.setattr(console, "SLOW", 0.0)
    with console.told_if_slow("loading ..."):
        assert told.wait(60)
    told.clear()
    monkeypatch.setattr(console, "SLOW", 3600.0)
    with console.told_if_slow("loading ..."):
        pass
    assert not told.is_set()

"""No file of a run or of a store, however damaged, ends in a traceback, a hang, or gigabytes.

`make fuzz` does the same for longer and says more.
"""

import os
import random
import sys
import time
from pathlib import Path

import pytest
from fuzz.__main__ import repeat
from fuzz.campaign import Campaign
from fuzz.mutations import damage
from fuzz.workers import Case, run_cases

N, SEED = 24, 0
pytestmark = [
    # As `make fuzz`, and as users have it: in each process every check would be prepared anew.
    pytest.mark.unchecked,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory) -> Campaign:
    return Campaign.begin(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow
def test_damaged_files_are_read_or_refused_with_one_sentence(campaign):
    verdicts = list(campaign.cases(N, SEED, readers=2))
    assert len(verdicts) == N
    wrong = ["\n  ".join([repeat(v), *v.problems]) for v in verdicts if v.problems]
    assert not wrong, "\n".join(wrong)


def test_the_same_seed_does_the_same_damage(tmp_path):
    document = b'{"a": [1, 2, {"b": "text"}], "c": 0.5}'
    made = []
    for place in ("first", "second"):
        root = tmp_path / place / "here"
        root.mkdir(parents=True)
        for seed in range(60):
            path = root / f"{seed}.json"
            path.write_bytes(document)
            # Files of others are drawn from those of the same names.
            if seed:
                damage(path, f"json {seed}")
        kept = [p for p in sorted(root.iterdir()) if p.is_file() and p.stat().st_size < 1 << 24]
        made.append([(p.name, p.read_bytes()) for p in kept])
    assert made[0] == made[1]
    assert sum(content == document for _, content in made[0]) < 10


def _looping(path: Path) -> None:
    del path
    while True:
        pass


def _hungry(path: Path) -> None:
    del path
    taken = bytearray(400 << 20)
    taken[::4096] = b"x" * len(taken[::4096])


def _waiting(path: Path) -> None:
    del path
    time.sleep(3600)


def _talking(path: Path) -> tuple[int, tuple[int, ...]]:
    del path
    sys.stderr.write("saelab show: one\nsaelab show: two\n")
    return 2, ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reader", "problem"),
    [(_looping, "time"), (_hungry, "memory"), (_waiting, "hang"), (_talking, "not one sentence"),
     # pyrefly: ignore[division-by-zero]
     (lambda _: 1 / 0, "ZeroDivisionError"), (lambda _: os.abort(), "SIGABRT"),
     (lambda _: (1, ()), "not one sentence"), (lambda _: (3, ()), "exit code")],
)  # fmt: skip
def test_what_must_not_be_is_found(tmp_path, monkeypatch, reader, problem):
    monkeypatch.setattr("fuzz.workers.CPU_S", 1.0)
    monkeypatch.setattr("fuzz.workers.WALL_S", 10.0)
    monkeypatch.setattr("fuzz.readers.OF_EVERY_RUN", {})
    (tmp_path / "base" / "runs" / "one").mkdir(parents=True)
    file = Path("runs", "one", "config.json")
    (tmp_path / "base" / file).write_text("{}")

    def judged(by):
        monkeypatch.setattr("fuzz.readers.READERS", {"config.json": {"reader": by}})
        (verdict,) = run_cases(tmp_path / "base", tmp_path / "work", [Case(file, None)], 1)
        return verdict

    usual, verdict = judged(lambda _: (0, ())), judged(reader)
    verdict.growth_mb = max(0.0, verdict.peak_mb - usual.peak_mb)
    assert any(problem in found for found in verdict.problems), verdict


def test_every_way_of_damage_to_json_is_drawn(tmp_path):
    from fuzz.mutations import mutated

    document = {"a": [1, 2], "b": {"c": "d"}, "sha256": "x"}
    done = [mutated(document, random.Random(seed))[1] for seed in range(300)]
    for word in ("digits", "NaN", "depth", "remove", "extra", "twice", "long list", "all of it"):
        assert any(word in text for text in done), word

"""`saelab explain` with an endpoint that fails, and a kill in the middle: nothing is lost."""

import shutil
import signal
import subprocess
import sys
import time

import pytest
from analysis.explain.conftest import contents
from clients.scripted import KEY, Script, completion, serving

from saelab.analysis.explain.explain import ASKED, begin, explain_latent
from saelab.analysis.explain.records import TEXTS, explanation_sets
from saelab.analysis.verify_run import verify_run
from saelab.cli import main
from saelab.clients.choose import client_of
from saelab.clients.question import Answer
from saelab.config import UsageError
from saelab.training.run import Run

N, FEW, PARALLEL = 200, 24, 4
DEAD_AMONG = 6
"""Latents that never fire among the first 206."""
pytestmark = pytest.mark.unchecked


@pytest.fixture(autouse=True)
def key(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def wide(wide_run, tmp_path):
    return Run(shutil.copytree(wide_run.path, tmp_path / "run"))


def reply(number, body):
    """Every tenth request fails, each in another way; an answer names what it was asked."""
    if number % 10 == 3:
        bad = ((500, {"error": KEY}), (429, b"later"), (200, b"{"), (200, completion("  ")))
        return *bad[number // 10 % 4], {}
    time.sleep(0.002)
    digest = hash(body["messages"][-1]["content"]) % 10**8
    return 200, completion(f"Explanation: {digest} {KEY}"), {}


def words(run, script, first=FEW, most=FEW + 20):
    return ["explain", str(run.path), "--llm", "m", "--base-url", script.url,
            "--first", str(first), "--parallel", str(PARALLEL), "--backoff", "0.01",
            "--max-requests", str(most)]  # fmt: skip


def test_200_latents_are_explained_once_through_failures_and_a_kill(wide, tmp_path, capfd):
    most = N + N // 10 + 20
    with serving(Script(reply)) as script:
        command = words(wide, script, N + DEAD_AMONG, most)
        argv = [sys.executable, "-m", "saelab.cli", *command]
        with (tmp_path / "log").open("wb") as log:
            first = subprocess.Popen(argv, stdout=log, stderr=log)
            while script.answered.total() < N // 3:
                assert first.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.005)
            first.send_signal(signal.SIGKILL)
            first.wait()
        assert not list(explanation_sets(wide.path))
        assert verify_run(wide.path).damages == []
        assert main(command) == 0
    (found,) = explanation_sets(wide.path)
    asked = {hash(text) % 10**8 for text in script.asked}
    assert len(asked) == len(found.by_latent) == N
    assert {int(e.text.split()[0]) for e in found.by_latent.values()} == asked
    assert {e.text.split()[1] for e in found.by_latent.values()} == {"[key]"}
    # What was under way at the kill may have been answered to nobody.
    paid_twice = {text: n for text, n in script.answered.items() if n > 1}
    tenth = script.asked.total() // 10 + 1
    assert script.answered.total() <= N + PARALLEL + tenth
    assert script.asked.total() <= found.requests <= most
    assert len(paid_twice) <= PARALLEL + tenth
    assert not (found.path / ASKED).exists()
    said = "".join(capfd.readouterr())
    assert f"At most {most} requests" in said
    for text in (said, (tmp_path / "log").read_text()):
        assert KEY not in text
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


def test_the_budget_ends_the_work_and_a_higher_one_continues_it(wide, capsys):
    with serving(Script(reply)) as script:
        assert main(words(wide, script, most=12)) == 1
        assert "raise --max-requests" in capsys.readouterr().out
        assert script.asked.total() == 12
        (some,) = explanation_sets(wide.path)
        assert 6 <= len(some.by_latent) < 12
        assert main(words(wide, script)) == 0
    (found,) = explanation_sets(wide.path)
    assert len(found.by_latent) == FEW
    assert found.by_latent.items() >= some.by_latent.items()
    assert found.requests == script.asked.total()
    assert [path.name for path in found.path.iterdir()] == [TEXTS]


def test_a_finished_judging_is_shown_and_not_paid_for_again(wide, capsys):
    assert main(["explain", str(wide.path), "--llm", "tokens", "--first", "3"]) == 0
    capsys.readouterr()
    with serving(Script(lambda number, body: (200, completion("yes"), {}))) as script:
        command = ["explain", str(wide.path), "--score", "tokens", "--judge", "m",
                   "--base-url", script.url, "--controls", "1"]  # fmt: skip
        assert main(command) == 0
        paid, table = script.asked.total(), capsys.readouterr().out
        scores = contents(wide.path)
        assert main(command) == 0
        assert script.asked.total() == paid > 0
        assert contents(wide.path) == scores
        out = capsys.readouterr().out
        assert "m has answered all of this before; move scores_m.json away" in out
        assert set(table.splitlines()) <= set(out.splitlines())
        # So are calibrations.
        calibrate = ["explain", "--calibrate", str(wide.path.parent / "judges"), "--judge", "m",
                     "--base-url", script.url, "--first", "1"]  # fmt: skip
        assert main(calibrate) == 0
        paid = script.asked.total()
        assert main(calibrate) == 0
        assert script.asked.total() == paid
        assert "move calibration_m.json away" in capsys.readouterr().out
        # Other questions are asked only if nothing that was paid for is lost.
        assert main([*command, "--examples", "2"]) == 2
        assert "give --examples 5" in capsys.readouterr().err
        (wide.path / "explanations" / "tokens" / "scores_m.json").unlink()
        assert main([*command, "--examples", "2"]) == 0
        assert script.asked.total() > paid


@pytest.mark.parametrize(
    ("status", "said"), [(401, "refuses the key in OPENAI_API_KEY"), (404, "has no model 'm'")]
)
def test_a_wrong_key_or_model_ends_it_with_one_sentence_and_nothing_lost(
    wide, capsys, status, said
):
    def some(number, body):
        return (status, b"no", {}) if number >= 12 else reply(number, body)

    with serving(Script(some)) as script:
        assert main(words(wide, script)) == 2
        err = capsys.readouterr().err
        assert said in err.splitlines()[-1]
        (found,) = explanation_sets(wide.path)
        assert len(found.by_latent) >= 6
        script.reply = reply
        assert main(words(wide, script)) == 0
        assert script.answered.total() <= FEW + 5


def test_a_server_that_is_not_there_is_one_sentence(wide, capsys):
    there = ["--base-url", "http://127.0.0.1:9/v1", "--backoff", "0"]
    assert main(["explain", str(wide.path), "--llm", "m", "--first", "30", *there]) == 1
    (told,) = capsys.readouterr().out.splitlines()
    assert "latents have no answer yet, and the same command continues: " in told
    assert "failed in a row; the last one: ConnectError" in told
    assert not list((wide.path / "explanations").rglob("*.json*"))
    few = ["--first", "2", "--attempts", "1"]
    assert main(["explain", str(wide.path), "--llm", "m", *few, *there]) == 1
    out = capsys.readouterr().out
    assert "no answer after 1 attempt; the last one failed: ConnectError" in out
    assert "refused at http://127.0.0.1:9/v1." in out
    assert KEY not in out
    assert not list((wide.path / "explanations").rglob("*.json*"))


def test_one_latent_is_explained_once_and_answers_about_others_stay(wide):
    with serving(Script(reply)) as script:
        client = client_of("m", base_url=script.url)
        explaining = begin(wide, "m", "endpoint", None)
        (question,) = explaining.questions([0]).values()
        explaining.ledger.add([(question.key, Answer("Explanation: paid before", 5, 5))])
        told = explain_latent(wide, 1, client)
        assert told.startswith("m explains latent 1: “")
        assert told.endswith("(110 tokens).")
        assert explain_latent(wide, 1, client).startswith("m has explained latent 1 already")
        assert script.asked.total() == 1
        with pytest.raises(UsageError, match="Latent 31 never fires"):
            explain_latent(wide, 31, client)
        # The answer of a process that was killed is not paid for again.
        assert "paid before" in explain_latent(wide, 0, client)
        assert script.asked.total() == 1
    (found,) = explanation_sets(wide.path)
    assert (found.requests, found.tokens) == (1, 120)
    assert not (found.path / ASKED).exists()

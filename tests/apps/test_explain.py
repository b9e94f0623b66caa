"""Explain on the Circuit page: the form, the queue of jobs, and two graphs side by side."""

import shutil
import sys
import time
from pathlib import Path

import pytest
from apps.circuit_cases import NAME, POSITION, write_circuit
from apps.driving import Open, address, drawn
from feature_browser.data.catalogue import read_catalogue
from feature_browser.live.jobs import GraphJob, JobQueue
from feature_browser.pages.circuit import explain, layout
from feature_browser.pages.circuit.address import CircuitAddress
from feature_browser.pages.circuit.graphs import open_graph
from feature_browser.pages.circuit.request import (
    choices,
    chosen,
    names_of,
    prompt_of,
    request_of,
)

from saelab.config import UsageError
from saelab.formats.json_file import write_sealed_json

ECHO = """
import json, os, sys, time
for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps({"report": {"title": "Trace", "done": 1, "total": 4, "unit": "latents",
                                 "seconds": 0.5}}), flush=True)
    if request["prompt"] == "wait":
        time.sleep(60)
    if request["prompt"] == "die":
        os._exit(3)
    answer = {"problem": "It is no prompt."} if request["prompt"] == "bad" else {"path": "a/b.json"}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def queue():
    """A queue whose process answers at once, waits, dies, or finds fault, by the prompt."""
    made = JobQueue((sys.executable, "-S", "-c", ECHO))
    yield made
    made.close()


@pytest.fixture
def shown(queue, monkeypatch: pytest.MonkeyPatch) -> JobQueue:
    """The same, as the queue of the app."""
    monkeypatch.setattr(explain, "job_queue", lambda: queue)
    return queue


@pytest.fixture
def root(runs: Path, tmp_path: Path) -> Path:
    """`heads`, with a graph that has latents of `plain` too, and `bare`, which has none."""
    for name, source in (("heads", "signed"), ("plain", "plain"), ("bare", "bare")):
        shutil.copytree(runs / source, tmp_path / name)
    write_circuit(tmp_path / "heads")
    return tmp_path


def until(true, *, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def asked(queue: JobQueue, prompt: str) -> GraphJob:
    return queue.submit({"prompt": prompt}, prompt)


# The queue


def test_jobs_are_done_in_order_by_one_process_and_faults_are_one_sentence(queue):
    jobs = [asked(queue, prompt) for prompt in ("wait", "bad", "good")]
    assert asked(queue, "good") is jobs[2]
    until(lambda: jobs[0].report.total == 4)
    assert [job.state for job in jobs] == ["running", "waiting", "waiting"]
    assert queue.open_jobs() == jobs
    queue.cancel(jobs[0].name)
    until(lambda: not queue.open_jobs())
    assert [job.state for job in jobs] == ["cancelled", "failed", "done"]
    assert jobs[1].problem == "It is no prompt."
    assert jobs[2].path == "a/b.json"
    assert jobs[2].steps[0][0] == "Trace"


def test_a_waiting_job_is_cancelled_and_a_dead_process_is_told_and_replaced(queue):
    first, waiting, dying, last = (asked(queue, p) for p in ("wait", "good", "die", "after"))
    queue.cancel(waiting.name)
    queue.cancel(first.name)
    until(lambda: not queue.open_jobs())
    assert waiting.state == first.state == "cancelled"
    assert dying.state == "failed"
    assert "ended (3)" in dying.problem
    assert last.state == "done"


def test_ended_jobs_are_forgotten_at_last_and_waiting_ones_limited(queue, monkeypatch):
    monkeypatch.setattr("feature_browser.live.jobs.KEPT", 3)
    monkeypatch.setattr("feature_browser.live.jobs.MOST_WAITING", 4)
    done = []
    for number in range(6):
        done.append(asked(queue, str(number)))
        until(lambda: not queue.open_jobs())
    assert queue.find(done[0].name) is None
    assert queue.find(done[-1].name) is done[-1]
    waiting = [asked(queue, "wait"), *(asked(queue, f"more {n}") for n in range(3))]
    with pytest.raises(UsageError, match="4 questions are waiting already"):
        asked(queue, "one too many")
    assert all(job.open for job in waiting)


# What is asked for


def test_the_request_is_that_of_the_command(root: Path):
    here = CircuitAddress(prompt="a b", target=" her", against=" him", limit="64", chat="1")
    found = request_of(here, [root / "heads"])
    assert found["runs"] == [str(root / "heads")]
    assert (found["prompt"], found["chat"]) == ("a b", True)
    assert {found["options"][n] for n in ("target", "against", "latent")} == {" her", " him", None}
    assert found["options"]["max_nodes"] == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "  "}, "There is no prompt"),
        ({"prompt": "x" * 100_001}, "more than 100000 characters"),
        ({"wanted": "heads:1", "target": "her"}, "a token or a latent .* not both"),
        ({"against": "him"}, "second token needs a first"),
    ],
)
def test_what_cannot_be_asked_is_said_before_it_waits(root: Path, changes, message: str):
    with pytest.raises(UsageError, match=message):
        request_of(CircuitAddress(prompt="a b").to(**changes), [root])
    with pytest.raises(UsageError, match="No SAE is chosen"):
        request_of(CircuitAddress(prompt="a b"), [])


def test_a_run_of_a_set_is_explained_by_the_set(root: Path):
    (root / "set.json").touch()
    catalogue = read_catalogue(root)
    known = choices(catalogue, catalogue.runs["plain"])
    assert list(known) == [f"set {root.name}", "plain", "bare", "heads"]
    assert known[f"set {root.name}"].path == root
    assert chosen(known, "") == [f"set {root.name}"]
    assert chosen(known, "bare|gone|plain") == ["bare", "plain"]


def test_a_graph_is_asked_again_of_its_set_or_of_its_runs(root: Path):
    catalogue = read_catalogue(root.parent)
    inside = {name: catalogue.runs[f"{root.name}/{name}"] for name in ("heads", "plain", "bare")}
    known = choices(catalogue, inside["heads"])
    two = {inside[name].path.resolve() for name in ("heads", "plain")}
    assert names_of(known, two) == [f"{root.name}/heads", f"{root.name}/plain"]
    write_sealed_json(root / "set.json", {
        "format": "saelab-set/1", "recipe": "transcoders",
        "model": {"name": "m", "weights_digest": "w", "tokenizer_digest": "t", "n_layers": 2},
        "members": [
            {"name": name, "layer": layer, "part": "mlp", "reads": f"blocks.{layer}.mlp.hook_in",
             "writes": f"blocks.{layer}.hook_mlp_out"}
            for layer, name in enumerate(("heads", "plain"))
        ],
    })  # fmt: skip
    known = choices(catalogue, inside["heads"])
    assert names_of(known, two) == [f"set {root.name}"]
    assert names_of(known, {inside["bare"].path.resolve()}) == [f"{root.name}/bare"]


def test_an_example_is_a_prompt_up_to_its_peak(root: Path):
    catalogue = read_catalogue(root)
    card = catalogue.runs["heads"]
    from feature_browser.data.reading import open_run

    file = open_run(card).features.file
    line = file["corpus/tokens"][2, :6].tolist()
    assert prompt_of(card, CircuitAddress(example="2-5")) == file.table.text(line)
    for beyond in ("2-9999", "9999-5"):
        with pytest.raises(UsageError, match="has no example at"):
            prompt_of(card, CircuitAddress(example=beyond))


# The page


def test_a_prompt_is_typed_explained_and_its_fault_is_shown(open_app: Open, root, shown):
    app = open_app(root, view="circuit", run="bare", part="explain", beside="other")
    app.text_area(key="explain-prompt").set_value("bad")
    app.text_input(key="explain-target").set_value("her")
    app.button(key="explain-go").click().run()
    job = shown.find(address(app)["job"])
    assert job is not None
    assert address(app)["beside"] == "other"
    assert job.request["options"]["target"] == "her"
    assert job.request["runs"] == [str(root / "bare")]
    until(lambda: not job.open)
    page = drawn(app.run())
    assert "This cannot be explained" in page
    assert "It is no prompt." in page
    assert app.text_area(key="explain-prompt").value == "bad"


def test_an_empty_prompt_is_refused_at_once(open_app: Open, root: Path, shown):
    app = open_app(root, view="circuit", run="bare")
    app.button(key="explain-go").click().run()
    assert "There is no prompt" in drawn(app)
    assert "job" not in address(app)
    assert not shown.open_jobs()


def test_a_running_job_shows_steps_rate_and_queue_and_is_cancelled(open_app, root, shown):
    mine = asked(shown, "wait")
    asked(shown, "<b>other</b>")
    until(lambda: mine.report.total == 4)
    app = open_app(root, view="circuit", run="bare", part="explain", job=mine.name)
    page = drawn(app)
    assert "Trace: 1 of 4 latents, 2 a second, about 2 s left" in page
    assert "1 other question asked" in page
    assert "<b>other" not in page
    assert "No circuit yet" not in page
    app.button(key=f"cancel-{mine.name}").click().run()
    assert mine.state == "cancelled"
    assert "was cancelled" in drawn(app.run())


def test_a_graph_that_is_done_is_opened_beside_the_one_it_was_asked_for(open_app, root, shown):
    write_circuit(root / "heads", "other")
    job = asked(shown, "good")
    until(lambda: not job.open)
    job.path = str(root / "heads" / "circuits" / "other.json")
    app = open_app(
        root, view="circuit", run="bare", part="explain", beside=NAME, job=job.name
    ).run()
    there = address(app)
    assert (there["run"], there["graph"], there["beside"]) == ("heads", "other", NAME)
    assert "job" not in there


def test_a_job_of_an_earlier_server_says_so(open_app: Open, root: Path, shown):
    page = drawn(open_app(root, view="circuit", run="bare", job="0123", prompt="a b"))
    assert "no longer being computed" in page


def test_pages_of_latents_and_graphs_lead_to_the_form(open_app: Open, root: Path, shown):
    page = drawn(open_app(root, run="plain", latent="3"))
    assert "view=circuit&amp;run=plain" in page
    assert "wanted=plain%3A3" in page
    page = drawn(open_app(root, view="circuit", run="heads", graph=NAME))
    assert "part=explain&amp;prompt=a+prompt" in page
    assert f"beside={NAME}" in page


# What is shown of a graph


def test_blocks_and_tokens_restrict_what_is_shown_but_not_the_pinned(open_app, root):
    everything = {"view": "circuit", "run": "heads", "graph": NAME, "nodes": "100", "edges": "100"}
    app = open_app(root, **everything, layers="1-1")
    # Two latents and an error of block 1, and the target.
    assert drawn(app).count('class="node"') == 4
    assert app.slider(key="circuit-layers").value == (1, 1)
    app.slider(key="circuit-layers").set_value((-1, 3)).run()
    assert "layers" not in address(app)
    # At the last token all but a latent, a word and earlier embeddings; the bias has no token.
    last = f"{POSITION}-{POSITION}"
    page = drawn(open_app(root, **everything, positions=last))
    assert "heads 6" not in page.split("</svg>")[0]
    assert "bias b_V 0" in page
    assert "heads 6" in drawn(open_app(root, **everything, positions=last, pins="heads 6 @3"))


def test_too_many_nodes_for_names_are_said_unless_blocks_leave_room(open_app, root, monkeypatch):
    monkeypatch.setattr(layout, "ROOMY", 4)
    everything = {"view": "circuit", "run": "heads", "graph": NAME, "nodes": "100", "edges": "100"}
    assert "too many for names" in drawn(open_app(root, **everything))
    page = drawn(open_app(root, **everything, layers="1-1"))
    assert "too many for names" not in page
    assert ">pending female</text>" in page


def test_nodes_have_names_until_one_takes_them_away(open_app: Open, root: Path):
    app = open_app(root, view="circuit", run="heads", graph=NAME, nodes="100")
    assert ">pending female</text>" in drawn(app)
    app.toggle(key="circuit-named").set_value(False).run()
    assert address(app)["named"] == "no"
    assert ">pending female</text>" not in drawn(app)
    assert ">5</text>" in drawn(app)


def test_two_graphs_are_drawn_with_what_each_node_gives_in_both(open_app: Open, root: Path):
    write_circuit(root / "heads", "other", target="logit 'him'")
    app = open_app(root, view="circuit", run="heads", graph=NAME)
    app.selectbox(key="circuit-beside").set_value("other").run()
    assert address(app)["beside"] == "other"
    page = drawn(app)
    assert page.count('<svg class="graph') == 2
    everything = {"view": "circuit", "run": "heads", "graph": NAME, "nodes": "100"}
    named = drawn(open_app(root, **everything, beside="other"))
    assert named.count(">pending female</text>") == 2
    assert "logit &#x27;him&#x27;" in page
    table = page.split("What nodes give in both graphs")[1]
    assert "plain 7" in table
    assert "+6.00" in table
    assert "+0.000" in table
    page = drawn(open_app(root, view="circuit", run="heads", graph=NAME, beside="gone"))
    assert "There is no circuit gone" in page


def test_names_of_graphs_do_not_leave_the_runs_directory(root: Path):
    catalogue = read_catalogue(root)
    assert open_graph(catalogue.runs["heads"], "../heads/b-to-her") is None

"""A page's code elsewhere: the command is one of saelab's, and the Python runs."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from feature_browser.data.catalogue import read_catalogue
from feature_browser.data.elsewhere import NOWHERE, SWITCHES, Elsewhere, command, python
from feature_browser.pages import pages
from feature_browser.pages.steering.experiment import Experiment
from streamlit.testing.v1 import AppTest

from saelab.analysis.notes import Notes
from saelab.cli import VERBS
from saelab.cli.circuit import CircuitArguments
from saelab.cli.options import options_of
from saelab.cli.parse import parse
from saelab.cli.publish import PublishArguments
from saelab.cli.steer import SteerArguments

PROMPT = "the big cat sat on a red"
HOSTILE = "cat $RUN \"'; rm {x}\\ \u05e9 $prompt"
OF_FILES = {view: {"latent": "5"} for view in ("latent", "latents", "known", "health", "training")}
OF_FILES |= {"lists": {"list": HOSTILE}, "compare": {"other": "plain"}, "steering": {}}
"""Pages whose Python reads files alone, and their addresses."""
STEERED = Experiment(prompt=PROMPT, latents=(3, 5), unit="absolute", strength=2.0, n_tokens=3)
OF_A_MODEL = {
    "try": {"prompt": PROMPT, "second": "a red dog"},
    "steering": {"part": "live", "experiment": STEERED.text},
    "circuit": {"part": "explain", "prompt": PROMPT, "target": "dog", "saes": "topk|heads"},
    "circuit graph": {"graph": ""},
}


def code(root: Path, run: str, view: str, monkeypatch, **address: str) -> Elsewhere:
    monkeypatch.setattr("sys.argv", ["app.py", str(root)])
    card, page = read_catalogue(root).runs[run], pages()[view.partition(" ")[0]]
    if view == "circuit graph":
        address["graph"] = next(card.path.glob("circuits/*.h5")).stem
    found = page.elsewhere(card, page.address.of({"run": run, **address}))
    assert found != NOWHERE
    return found


def whole(app: AppTest) -> str:
    """All the HTML of a page, with its dialogs."""
    return "".join(json.loads(one.proto.json)["html"] for one in app.get("bidi_component"))


def check_command(text: str) -> None:
    from saelab.cli import circuit, names, publish, show, steer
    from saelab.cli.evaluate import EvaluateArguments

    forms = {
        "names": names.NamesArguments,
        "show": show.ShowArguments,
        "steer": steer.SteerArguments,
        "circuit": circuit.CircuitArguments,
        "publish": publish.PublishArguments,
        "evaluate": EvaluateArguments,
    }
    saelab, verb, *words = shlex.split(text)
    assert (saelab, verb in VERBS) == ("saelab", True)
    assert parse(forms[verb], verb, words)


@pytest.mark.parametrize("view", OF_FILES)
def test_what_a_page_reads_from_files_is_read_by_its_python(
    runs: Path, tmp_path: Path, view: str, monkeypatch
):
    if view == "lists":
        for path in (runs / "signed").iterdir():
            (tmp_path / "signed").mkdir(exist_ok=True)
            (tmp_path / "signed" / path.name).symlink_to(path)
        Notes(tmp_path / "signed").write(5, "list", f"{HOSTILE}\n+")
    found = code(tmp_path if view == "lists" else runs, "signed", view, monkeypatch,
                 **OF_FILES[view])  # fmt: skip
    exec(compile(found.python, view, "exec"), {})
    check_command(found.command)


@pytest.mark.parametrize(
    ("run", "view", "address"),
    [
        ("signed", "latent", {"latent": "99"}),
        ("bare", "latent", {"latent": "5"}),
        ("signed", "lists", {"list": "never made"}),
        ("plain", "known", {}),
    ],
)
def test_what_a_page_refuses_has_no_code(runs: Path, run: str, view: str, address, monkeypatch):
    monkeypatch.setattr("sys.argv", ["app.py", str(runs)])
    card, page = read_catalogue(runs).runs[run], pages()[view]
    assert page.elsewhere(card, page.address.of({"run": run, **address})) == NOWHERE


def test_a_page_that_needs_features_has_no_code_without_them(runs: Path, open_app):
    assert 'class="code"' not in whole(open_app(runs, run="bare", view="latents"))
    assert 'class="code"' in whole(open_app(runs, run="plain", view="latents"))


def test_runs_of_other_places_are_compared_by_no_python(runs: Path, tmp_path: Path, monkeypatch):
    for name in ("signed", "plain"):
        shutil.copytree(runs / name, tmp_path / name)
    path = tmp_path / "plain" / "config.json"
    path.write_text(path.read_text().replace("blocks.2.", "blocks.1."))
    found = code(tmp_path, "signed", "compare", monkeypatch, other="plain")
    assert found.python == ""
    check_command(found.command)


@pytest.mark.parametrize("view", OF_A_MODEL)
def test_what_a_page_runs_live_is_run_by_its_python(
    circuit_runs: Path, view: str, monkeypatch, capsys
):
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda _: None)
    found = code(circuit_runs, "heads", view, monkeypatch, **OF_A_MODEL[view])
    exec(compile(found.python, view, "exec"), {})
    said = capsys.readouterr().out
    assert {"try": "cat [", "steering": "steered:", "circuit": "dog"}.get(view, "latent") in said
    check_command(found.command)


def test_an_experiments_python_writes_what_the_page_shows(circuit_runs: Path, monkeypatch, capsys):
    from feature_browser.data.catalogue import read_card
    from feature_browser.live.model import live_run
    from feature_browser.pages.steering.experiment import run_experiment

    found = code(circuit_runs, "topk", "steering", monkeypatch, **OF_A_MODEL["steering"])
    exec(compile(found.python, "steering", "exec"), {})
    told = run_experiment(live_run(read_card(circuit_runs / "topk", circuit_runs)), STEERED)
    lines = [f"plain: {told.plain[0].text}", f"steered: {told.steered[0].text}"]
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize("text", ["--x", "--out", "-x", "--", "-", "--a=b c", "- a", "-4", "x"])
def test_a_readers_text_is_never_an_option(text: str):
    words = ("publish", Path("--run"), "--list", text, "--out", "site")
    _, verb, *typed = shlex.split(command(*words))
    read = parse(PublishArguments, verb, typed)
    assert (read.list_, read.out, read.runs) == (text, Path("site"), (Path("--run"),))
    words = ("steer", "run", "--latents", 3, 5, "--prompt", text, "--chat", "--dose", "--seed", 1)
    _, verb, *typed = shlex.split(command(*words))
    read = parse(SteerArguments, verb, typed)
    assert (read.prompt, read.latents, read.chat, read.dose) == (text, (3, 5), True, True)


def test_the_switches_are_those_of_the_verbs():
    there = [
        option
        for cls in (PublishArguments, SteerArguments, CircuitArguments)
        for option in options_of(cls)
    ]
    named = [option for option in there if option.name in SWITCHES]
    assert {option.name for option in named} == SWITCHES
    assert all(option.is_switch for option in named)


def test_a_readers_text_is_never_code(runs: Path):
    card = read_catalogue(runs).runs["signed"]
    scope: dict[str, object] = {}
    exec(
        python(card, "said, run, many = $text, $RUN, $texts", text=HOSTILE, texts=[HOSTILE]), scope
    )
    assert (scope["said"], scope["many"]) == (HOSTILE, [HOSTILE])
    assert scope["run"] == card.path.as_posix()

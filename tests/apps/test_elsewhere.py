"""A page's code elsewhere: the command is one of saelab's, and the Python runs."""

import shlex
from pathlib import Path

import pytest
from feature_browser.data.catalogue import read_catalogue
from feature_browser.data.elsewhere import NOWHERE
from feature_browser.pages import pages

from saelab.cli import VERBS
from saelab.cli.parse import parse

WITH_CODE = ("latent", "latents", "known", "health", "training")


def test_these_pages_say_it():
    given = {
        view for view, page in pages().items() if page.elsewhere is not pages()["runs"].elsewhere
    }
    assert given >= set(WITH_CODE)


@pytest.mark.parametrize("view", WITH_CODE)
def test_the_python_of_a_page_runs(runs: Path, view: str):
    card, page = read_catalogue(runs).runs["signed"], pages()[view]
    found = page.elsewhere(card, page.address.of({"run": "signed", "latent": "5"}))
    assert found != NOWHERE
    exec(compile(found.python, view, "exec"), {})


@pytest.mark.parametrize("view", WITH_CODE)
def test_the_command_of_a_page_is_understood(runs: Path, view: str):
    from saelab.cli import names, show, steer
    from saelab.cli.evaluate import EvaluateArguments

    card, page = read_catalogue(runs).runs["signed"], pages()[view]
    saelab, verb, *words = shlex.split(
        page.elsewhere(card, page.address.of({"run": "signed", "latent": "5"})).command
    )
    assert (saelab, verb in VERBS) == ("saelab", True)
    forms = {
        "names": names.NamesArguments,
        "show": show.ShowArguments,
        "steer": steer.SteerArguments,
        "evaluate": EvaluateArguments,
    }
    assert parse(forms[verb], verb, words)

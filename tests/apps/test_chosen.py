"""A run that has the features of chosen latents alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from apps.driving import Open, address, drawn
from feature_browser.data.catalogue import read_catalogue
from feature_browser.draw.annotate import Keeper
from feature_browser.draw.numbers import percent

from saelab.analysis.explain.explain import begin, chosen, explain_by_tokens
from saelab.analysis.features import FeatureOptions
from saelab.analysis.features.collect import collect_chosen
from saelab.analysis.notes import Notes
from saelab.analysis.records import Features
from saelab.analysis.steering.edits import latent_edits, with_maxima
from saelab.analysis.steering.interventions import Intervention
from saelab.cli import main
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.training.run import Run


@pytest.fixture(scope="module")
def few(small_run, random_lm, tmp_path_factory) -> Path:
    """A directory with a run `one`, of which latents 3 and 17 have features."""
    root = tmp_path_factory.mktemp("chosen")
    run = Run(shutil.copytree(small_run.path, root / "one"))
    collect_chosen(run, random_lm, [17, 3], FeatureOptions(n_tokens=300, n_examples=8, reach=3))
    return root


def test_their_pages_follow_each_other_and_of_others_the_command_is_named(
    few: Path, open_app: Open
):
    app = open_app(few, run="one", view="latent", latent="3")
    page = drawn(app)
    assert 'data-numbers="3 17"' in page
    assert "Top examples" in page
    assert app.button(key="previous").disabled
    app.button(key="next").click().run()
    assert address(app)["latent"] == "17"
    assert app.button(key="next").disabled
    page = drawn(open_app(few, run="one", view="latent", latent="5"))
    assert "No features of latent 5" in page
    assert "--latents 5" in page
    page = drawn(open_app(few, run="one", view="beside", latents="3,5"))
    assert "No features of it were collected in one." in page
    assert "There is no latent 99" in drawn(open_app(few, run="one", view="latent", latent="99"))


def test_lists_show_them_and_health_says_that_the_rest_is_unknown(few: Path, open_app: Open):
    page = drawn(open_app(few, run="one", view="latents"))
    assert "2 of 32 latents were chosen" in page
    assert "latent=17" in page
    assert "Its features were asked for." in drawn(open_app(few, run="one", view="welcome"))
    assert "saelab features" in drawn(open_app(few, run="one", view="health"))


def test_a_list_has_those_without_features_too_and_can_be_mended(few: Path, open_app: Open):
    notes = Notes(few / "one")
    for latent in (3, 1, 17, 32):
        notes.write(latent, "list", "mixed\n+\nkept")
    app = open_app(few, run="one", view="lists")
    page = drawn(app)
    assert "3 latents · 1 numbers are of no latent of this run" in page
    rows = {row.split("latent=")[1].split('"')[0]: row for row in page.split("<tr>")[2:]}
    assert list(rows) == ["3", "1", "17"]
    assert [n for n, row in rows.items() if "no features collected" in row] == ["1"]
    columns = Features.of(few / "one").table()
    assert all(
        str(percent(float(columns["density"][place]))) in rows[n]
        for place, n in ((0, "3"), (1, "17"))
    )
    assert 'aria-label="Take 1 off the list"' in rows["1"]
    card = read_catalogue(few).runs["one"]
    edit = {"id": 1, "latent": 31, "field": "list", "value": "mixed\n+"}
    Keeper.of(card)([edit])
    assert [one.latent for one in notes.lists()["mixed"]] == [3, 1, 17, 32, 31]


def test_they_are_explained_published_and_exported(few: Path, tmp_path: Path, capsys):
    run = Run(few / "one")
    explaining = begin(run, "token statistics", "tokens", "tokens")
    assert list(chosen(explaining.features, (), None)) == [3, 17]
    assert list(explaining.questions([3, 17]))
    explain_by_tokens(explaining, chosen(explaining.features, (), 1))
    assert list(explaining.texts.by_latent) == [3]
    with pytest.raises(
        UsageError, match=r"no latent 5; `saelab features \S+/one --latents 5` adds it"
    ):
        chosen(explaining.features, [5], None)
    shutil.rmtree(explaining.texts.path)
    site = tmp_path / "site"
    assert main(["publish", str(run.path), "--out", str(site)]) == 0
    assert {page.stem for page in site.glob("one/[0-9]*.html")} == {"3", "17"}
    other = str(tmp_path / "b")
    assert main(["publish", str(run.path), "--latents", "3", "5", "4", "--out", other]) == 2
    said = capsys.readouterr().err
    assert f"no latent 5 and 1 more of these; `saelab features {run.path} --latents 5 4`" in said
    assert main(["publish", str(run.path), "--latents", "99", "--out", other]) == 2
    assert "There is no latent 99; the SAE has 0 to 31." in capsys.readouterr().err
    assert main(["show", str(run.path)]) == 0
    assert "features                 of 2 chosen latents among 32" in capsys.readouterr().out
    out = tmp_path / "json"
    assert main(["export", str(run.path), "--to", "neuronpedia", "--out", str(out)]) == 0
    features = json.loads((out / "batch-0.json").read_text())["features"]
    assert [each["feature_index"] for each in features] == [3, 17]


def test_they_are_steered_in_units_of_their_own_maximum(few: Path, random_lm):
    host = with_maxima(Host.of_run(Run(few / "one"), random_lm))
    mask = torch.ones(1, 3, dtype=torch.bool)

    def edits(latent: int):
        change = Intervention(latents=(latent,), op="add", amount=1.0, unit="latent_max")
        return latent_edits(host, [change], mask)

    assert edits(3)
    with pytest.raises(UsageError, match="the maximum of latent 5, of which no features"):
        edits(5)

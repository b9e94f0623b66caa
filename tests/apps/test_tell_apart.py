"""The page that tells texts apart, on a random model whose latents are what they are."""

from pathlib import Path

import numpy as np
import pytest
from apps.driving import Open, drawn
from feature_browser.data.catalogue import read_catalogue
from feature_browser.live.model import live_run
from feature_browser.live.prompt import read_prompt
from feature_browser.live.texts import fired_in

THESE = "the big cat sat\nthe cat sat on a red mat"
THOSE = "a red dog\n\na dog on a mat"


def test_the_latents_of_the_texts_are_listed_and_chance_is_told(open_app: Open, live_runs: Path):
    app = open_app(live_runs, run="topk", view="tell")
    assert "Which latents tell them apart?" in drawn(app)
    app.text_area(key="tell-these").input(THESE)
    app.text_area(key="tell-those").input(THOSE)
    app.button[0].click()
    page = drawn(app.run())
    assert "tell them apart better than chance" in page
    assert "of 2 texts" in page
    app.text_area(key="tell-those").input("only one")
    app.button[0].click()
    assert "give at least 2 on each side" in drawn(app.run())
    app.text_area(key="tell-those").input("a dog\nwordless")
    app.button[0].click()
    assert "Text 4, “wordless”" in drawn(app.run())


def test_a_run_on_arrays_reads_no_texts(open_app: Open, runs: Path, tmp_path: Path):
    import json
    import shutil

    run = Path(shutil.copytree(runs / "plain", tmp_path / "arrays"))
    record = json.loads((run / "provenance.json").read_text())
    record = {"model": None, "corpus": record["corpus"]}
    (run / "provenance.json").write_text(json.dumps(record))
    assert "it reads no texts" in drawn(open_app(tmp_path, run="arrays", view="tell"))


@pytest.mark.parametrize("text", ["the big cat sat on a mat", "a"])
def test_the_firings_of_a_text_are_those_of_try_it(live_runs: Path, text: str):
    live = live_run(read_catalogue(live_runs).runs["topk"])
    latent, value = fired_in(live, text)
    whole = read_prompt(live, text)
    assert latent.tolist() == np.unique(whole.latent).tolist()
    largest = [np.abs(whole.value[whole.latent == one]).max() for one in latent]
    np.testing.assert_allclose(value, largest, rtol=1e-6)

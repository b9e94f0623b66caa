import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from apps.driving import Open, drawn
from feature_browser.data.address import parsed
from feature_browser.data.catalogue import read_card
from feature_browser.data.reading import OpenRun, open_run
from feature_browser.pages.latents.address import LatentsAddress
from feature_browser.pages.latents.latents_scatter import COLUMNS, axes_of, inside


@pytest.fixture
def run(runs: Path) -> OpenRun:
    return open_run(read_card(runs / "signed", runs))


def test_the_picture_is_drawn_when_asked_for(open_app: Open):
    assert 'class="scatter"' not in drawn(open_app(run="signed", view="latents"))
    page = drawn(open_app(run="signed", view="latents", axes="density,max"))
    assert 'class="scatter"' in page
    assert "1 lack one of the figures" in page  # the latent that never fires
    assert "output score" in page


@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "density"])
def test_every_figure_can_be_drawn_against_another(open_app: Open, name: str):
    page = drawn(open_app(run="signed", view="latents", axes=f"density,{name}"))
    assert page.count('class="mark') > 5 or "No latent has both figures" in page


@pytest.mark.parametrize("axes", ["density", "density,secret", "density,max,mean", "<b>,max"])
def test_other_figures_are_not_looked_up(open_app: Open, axes: str):
    assert axes_of(LatentsAddress(axes=axes)) is None
    page = drawn(open_app(run="signed", view="latents", axes=axes))
    assert "31 of 32 latents" in page
    assert 'class="scatter"' not in page


def test_a_run_without_scores_offers_none(open_app: Open):
    page = drawn(open_app(run="plain", view="latents", axes="density,max"))
    assert "output score" not in page
    assert ">F1 of the known feature<" not in page


def test_each_mark_that_stands_for_several_lists_exactly_those(open_app: Open, run: OpenRun):
    page = drawn(open_app(run="signed", view="latents", axes="f1,f1"))
    marks = re.findall(r'<a href="(\?[^"]*box=[^"]*)"[^>]*data-tip="(\d+) here', page)
    assert marks
    for href, n in marks:
        place = LatentsAddress.of(parsed(unescape(href)))
        found = inside(run, place)
        assert found is not None
        assert int(found.sum()) >= int(n)
        listed = drawn(open_app(run="signed", **place.to(run=None).params()))
        fired = int((found & (np.asarray(run.columns["n_fired"]) > 0)).sum())
        assert f"{fired} of 32 latents" in listed
        assert "one cell of the picture" in listed

import shutil
from pathlib import Path
from urllib.parse import urlencode

import pytest
from apps.driving import Open, drawn
from feature_browser.pages.latent.view import latent_page
from starlette.requests import Request
from starlette.responses import Response

from saelab.analysis.feature_file import FeatureFile
from saelab.formats.hdf5_file import write_hdf5


@pytest.fixture
def ask(runs: Path, monkeypatch: pytest.MonkeyPatch):
    """Ask for a latent's page, by default of the runs of conftest.py."""

    def asked(root: Path = runs, **address: str) -> Response:
        monkeypatch.setattr("sys.argv", ["asgi.py", str(root)])
        query = urlencode(address).encode()
        return latent_page(Request({"type": "http", "query_string": query, "headers": []}))

    return asked


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    """The same runs, to be changed."""
    return Path(shutil.copytree(runs, tmp_path / "copy"))


def text(response: Response) -> str:
    return bytes(response.body).decode()


def test_the_route_and_the_script_draw_the_same_page(ask, open_app: Open):
    answer = ask(run="signed", latent="7", context="8", show="strata")
    assert answer.status_code == 200
    assert text(answer) in drawn(open_app(run="signed", latent="7", context="8", show="strata"))


@pytest.mark.parametrize("latent", ["32", "-1", "", "1e1", "5;", "<b>", "9" * 400, "٣٣٣٣"])
def test_what_is_no_latent_is_not_found(ask, latent: str):
    answer = ask(run="signed", latent=latent)
    assert answer.status_code == 404
    assert text(answer).startswith("There is no latent")


@pytest.mark.parametrize("run", ["", ".", "..", "../signed", "signed/..", "/etc", "signed\0", "x"])
def test_what_is_no_run_below_the_directory_is_not_found(ask, run: str):
    answer = ask(run=run, latent="5")
    assert answer.status_code == 404
    assert text(answer).startswith("There is no run")


def test_a_run_outside_the_directory_is_not_found_by_its_path(ask, runs: Path, tmp_path: Path):
    answer = ask(root=tmp_path, run=str(runs / "signed"), latent="5")
    assert answer.status_code == 404


def test_a_page_is_sent_as_plain_text_so_that_alone_it_is_inert(ask):
    answer = ask(run="signed", latent="20")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "<img" not in text(answer)


def test_a_run_without_features_or_with_damaged_ones_is_not_found(ask, copy: Path):
    assert ask(run="bare", latent="5").status_code == 404
    (copy / "signed" / "features.h5").write_bytes(b"damaged")
    answer = ask(root=copy, run="signed", latent="5")
    assert answer.status_code == 404
    assert "is not a whole features file" in text(answer)


VIEWS_OF_FEATURES = ["latent", "latents"]


@pytest.mark.parametrize("view", VIEWS_OF_FEATURES)
def test_features_of_another_version_are_said_to_be_and_other_views_work(
    open_app: Open, copy: Path, view: str
):
    path = copy / "signed" / "features.h5"
    file = FeatureFile(path)
    arrays = {"latent/n_fired": file["latent/n_fired"].copy()}
    write_hdf5(path, arrays, {**file.facts, "format": "saelab-features/1"})
    page = drawn(open_app(copy, run="signed", view=view, latent="5"))
    assert "has the format &#x27;saelab-features/1&#x27;" in page
    assert "saelab features" in page
    assert "blocks.2.hook_resid_post" in drawn(open_app(copy, run="signed", view="training"))
    assert 'data-latent="5"' in drawn(open_app(copy, run="plain", latent="5"))

"""The page of transport: its latents, maps and pairs, in every state."""

import shutil
from pathlib import Path

import pytest
from apps.conftest import D_SAE
from apps.driving import Open, drawn
from apps.transport_cases import write_transport

from saelab.analysis.transport.records import VERDICTS, read_transport, transport_files
from saelab.analysis.transport.transport_file import transport_path


@pytest.fixture(scope="module")
def carried(runs: Path, tmp_path_factory) -> Path:
    """`one` has three pairs, one of them without latents; `two` has no features, `none` nothing."""
    root = tmp_path_factory.mktemp("carried")
    shutil.copytree(runs / "plain", root / "one")
    shutil.copytree(runs / "bare", root / "two")
    shutil.copytree(runs / "plain", root / "none")
    site = "blocks.{}.hook_resid_post"
    write_transport(root / "one", site.format(1), site.format(2), D_SAE)
    write_transport(root / "one", site.format(0), site.format(2), D_SAE)
    write_transport(root / "one", site.format(0), site.format(1), 0)
    write_transport(root / "two", "<b>early</b>", "late", D_SAE, splice=[], no_splice="No <model>.")
    return root


def test_the_page_counts_draws_and_lists_every_verdict(open_app: Open, carried: Path):
    found = read_transport(
        transport_path(carried / "one", "blocks.0.hook_resid_post", "blocks.2.hook_resid_post")
    )
    page = drawn(open_app(carried, view="transport", run="one"))
    counts = {name: found.count(name) for name in VERDICTS}
    assert counts == {"carried": 6, "computed": 23, "undecided": 1, "rare": 2}
    assert f"Carried or computed? 6 of {D_SAE - 2} latents are carried" in page
    assert f"computed between {counts['computed']}" in page
    assert "5\u00a0000 rows; 7 were left out" in page
    assert page.count('class="mark') > 15
    assert page.count('class="curve') == 2
    assert 'href="?run=one&amp;latent=5"' in page
    assert "80.0\u00a0%" in page
    assert page.split("<tbody>")[-1].startswith('<tr><td><a href="?run=one&amp;latent=0">0<')


@pytest.mark.parametrize(("name", "n"), [("carried", 6), ("computed", 23), ("rare", 2)])
def test_a_verdict_and_a_limit_filter_the_table(open_app: Open, carried: Path, name: str, n: int):
    page = drawn(open_app(carried, view="transport", run="one", keep=name))
    assert f"{n} of {D_SAE} latents" in page
    other = drawn(open_app(carried, view="transport", run="one", keep="carried", limit="0.9"))
    assert "1 of 32 latents" in other


def test_columns_sort_and_numbers_and_boxes_are_found(open_app: Open, carried: Path):
    page = drawn(open_app(carried, view="transport", run="one", sort="n_fired", page="2"))
    assert page.split("<tbody>")[-1].count("<tr>") == (D_SAE - 2) % 25
    found = drawn(open_app(carried, view="transport", run="one", q="7"))
    assert ">7</a>" in found.split("<tbody>")[-1]
    assert "No latent passes" in drawn(open_app(carried, view="transport", run="one", q="zzz"))
    boxed = drawn(open_app(carried, view="transport", run="one", box="0,9,0.9,1.1"))
    assert "2 of 32 latents" in boxed
    assert "one cell of the picture" in boxed


def test_pairs_are_compared_and_one_without_latents_shows_its_maps(open_app: Open, carried: Path):
    pair = "blocks.0.hook_resid_post--blocks.1.hook_resid_post"
    page = drawn(open_app(carried, view="transport", run="one", pair=pair))
    assert "latents are of another site" in page
    assert page.count("blocks.0.hook_resid_post--blocks.2.hook_resid_post") == 1
    assert "6 of 8" in page


def test_a_run_without_features_or_model_and_hostile_names_are_shown(open_app: Open, carried: Path):
    page = drawn(open_app(carried, view="transport", run="two"))
    assert "&lt;b&gt;early&lt;/b&gt;" in page
    assert "<b>early" not in page
    assert "No &lt;model&gt;." in page


def test_what_is_missing_or_damaged_is_told(open_app: Open, carried: Path, tmp_path: Path):
    page = drawn(open_app(carried, view="transport", run="none"))
    assert "saelab transport --run" in page
    shutil.copytree(carried / "one", tmp_path / "one")
    path = transport_files(tmp_path / "one")[0]
    path.write_bytes(path.read_bytes()[:-60])
    page = drawn(open_app(tmp_path, view="transport", run="one"))
    assert "not a whole file of transport" in page

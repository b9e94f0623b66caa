"""The run that the browser is measured on is a run like any other."""

from pathlib import Path

import pytest
from apps.driving import APP, drawn
from benchmarks.browser import summary, table
from benchmarks.large_run import Size, write_large_run
from feature_browser.pages import pages
from rich.console import Console
from streamlit.testing.v1 import AppTest

from saelab.analysis.records import Features

SIZE = Size(d_sae=512, d_in=16, n_contexts=16, length=32, vocabulary=300, firings=8, n_steps=30)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large")
    for seed in (0, 1):
        write_large_run(root / f"run{seed}", SIZE, seed)
    return root


def test_every_latent_can_be_read_and_a_planted_one_fires_on_its_token(runs: Path):
    features = Features(runs / "run0")
    assert [record.latent for record in features] == list(range(512))
    fired = sum(record.n_fired for record in features)
    assert 0.9 * 8 <= fired / (16 * 32) <= 8
    latents = [found.latent for found in features.latents_on(3)]
    assert set(latents) & {(3 * 4 + i) * 40_503 % 512 for i in range(4)}


@pytest.mark.parametrize("view", list(pages()))
def test_every_view_shows_it(runs: Path, view: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["app.py", str(runs)])
    app = AppTest.from_file(str(APP), default_timeout=30)
    for name, value in {"run": "run0", "view": view, "latent": "7", "other": "run1"}.items():
        app.query_params[name] = value
    assert "This cannot be shown" not in drawn(app.run())


def test_times_are_told_by_their_middle_and_their_worst():
    found = summary([float(i) for i in range(1, 102)])
    assert found == {"n": 101, "p50": 51.0, "p95": 96.0, "max": 101.0}
    console = Console(width=80)
    with console.capture() as shown:
        console.print(table({"next": found}))
    assert shown.get().splitlines()[-1].split() == ["next", "101", "51", "96", "101"]

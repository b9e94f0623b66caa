"""The Shared page: what a crosscoder's sites share, and what it says without a measurement."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from apps.conftest import D_SAE
from apps.driving import Open, drawn

from saelab.analysis.sharing.records import Sharing, save_sharing

HOSTILE = "<b>site</b>"


@pytest.fixture(scope="module")
def root(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain` with shares: latents 0 to 3 of the first site alone, 4 to 7 of the second."""
    root = tmp_path_factory.mktemp("shared")
    for name in ("plain", "bare"):
        shutil.copytree(runs / name, root / name)
    second = np.full(D_SAE, 0.5, np.float32)
    second[:4], second[4:8] = 0.1, 1.0
    norm = np.stack([1 - second, second], axis=1)
    fired = np.arange(D_SAE) + 10
    fired[3] = 0
    scale = norm.copy()
    scale[5] = 1.0
    found = Sharing(("one", HOSTILE), (0.125, 0.25), 90, fired, norm, scale, scale)
    save_sharing(found, root / "plain", {})
    return root


def test_latents_are_counted_and_listed_by_what_they_are_of(open_app: Open, root: Path):
    page = drawn(open_app(root, view="shared", run="plain"))
    assert f"{D_SAE - 8} latents are shared by 2 sites" in page
    assert "<b>3</b> only in one, 3 of them genuine; its FVU is 0.1250" in page
    assert "<b>4</b> only in " in page
    assert "3 of them genuine; its FVU is 0.2500" in page
    assert HOSTILE not in page
    assert [f"latent={n}&amp;" in page or f"latent={n}\"" in page for n in (2, 3, 4)] == [
        True, False, False,
    ]  # fmt: skip
    other = drawn(open_app(root, view="shared", run="plain", kind="1", sort="error"))
    assert other.index(">5</a>") < other.index(">4</a>")
    shared = drawn(open_app(root, view="shared", run="plain", kind="shared"))
    assert ">8</a>" in shared
    assert "There are none" in drawn(open_app(root, view="shared", run="plain", kind="between"))


def test_a_run_without_shares_says_how_to_have_them(open_app: Open, root: Path):
    page = drawn(open_app(root, view="shared", run="bare"))
    assert "reads one" in page
    assert "--beside OTHER" in page


def test_a_damaged_file_is_named(open_app: Open, root: Path, tmp_path: Path):
    copy = shutil.copytree(root, tmp_path / "copy")
    (copy / "plain" / "sharing.h5").write_bytes(b"no")
    assert "sharing.h5" in drawn(open_app(copy, view="shared", run="plain"))

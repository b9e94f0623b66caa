"""The rows of tables as files: what is saved is the value, not what is drawn."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from apps.conftest import DEAD
from feature_browser.draw.numbers import activation, count, flow_text, literal, percent, real
from feature_browser.draw.tables import cell, metered, part
from playwright.sync_api import Page, expect

from saelab.analysis.records import Features

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def saved(page: Page, form: str) -> str:
    """What the first table of the page is saved as."""
    with page.expect_download() as file:
        page.locator(f'[data-export="{form}"]').first.click()
    return Path(file.value.path()).read_text()


def test_numbers_are_drawn_short_and_saved_exactly():
    drawn = [percent(0.0112345678), activation(0.123456), count(-12345), flow_text(-0.1234567)]
    assert [str(cell(one)).partition(">")[0] for one in drawn] == [
        '<data value="0.0112345678"',
        '<data value="0.123456"',
        '<data value="-12345"',
        '<data value="-0.1234567"',
    ]
    assert str(cell(real(None))) == "\u2013"
    assert 'value="0.25" data-column="share"' in part(percent(0.25), "share")
    assert 'value="1e-05"' in metered(str(literal("x")), 0.5) + cell(literal("1e-05"))


def test_all_latents_are_saved_with_their_values(page: Page, server: str, runs: Path):
    page.goto(f"{server}/?view=latents&run=signed")
    rows = [json.loads(line) for line in saved(page, "jsonl").splitlines()]
    columns = Features(runs / "signed").table()
    assert len(rows) == DEAD
    for row in rows:
        latent = row["Latent"]
        assert row["Density"] == pytest.approx(columns["density"][latent], rel=1e-8)
        assert row["Max"] == pytest.approx(columns["max"][latent], rel=1e-8)
    five = next(row for row in rows if row["Latent"] == 5)
    assert (five["Known feature"], five["F1"]) == ("pending female", 0.86)
    assert five["Label"] == ""
    # The same rows as CSV.
    table = list(csv.DictReader(io.StringIO(saved(page, "csv"))))
    assert list(table[0]) == list(rows[0])
    np.testing.assert_allclose([float(r["Mean when on"]) for r in table],
                               [r["Mean when on"] for r in rows])  # fmt: skip


def test_parts_of_a_cell_have_columns_of_their_own(page: Page, server: str):
    page.goto(f"{server}/?view=known&run=signed")
    expect(page.locator("table")).to_be_visible()
    first, other = [json.loads(line) for line in saved(page, "jsonl").splitlines()]
    assert first["Known feature"] == "pending female"
    assert first["Known feature in words"] == "A woman is still to be <referred> to."
    assert (first["Best latent"], first["Best latent side"]) == (5, None)
    assert (other["Best latent"], other["Best latent side"]) == (6, "negative")
    assert first["How often"] == 0.03

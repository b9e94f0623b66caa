import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from apps.driving import Open, address, drawn
from feature_browser.draw.charts import logged, multiples
from playwright.sync_api import Page, expect


def test_every_logged_figure_has_a_chart_and_those_of_every_run_come_first(
    open_app: Open, runs: Path, tmp_path: Path
):
    run = tmp_path / "runs" / "one"
    shutil.copytree(runs / "plain", run)
    lines = [{"step": s, "tokens": 9 * s, "aux_k": s, "fvu": 1 / s, "note": "x"} for s in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = drawn(open_app(run.parent, run="one", view="training"))
    titles = [part.split(" <b>")[0] for part in page.split('<div class="small"><h3>')[1:]]
    assert titles == ["FVU", "Aux k"]
    assert "2 logged steps" in page


def test_a_figure_that_was_never_a_number_is_not_listed():
    found = {
        "tokens": np.array([1.0, 2.0]),
        "fvu": np.array([np.nan, 0.5]),
        "odd": np.full(2, np.nan),
    }
    assert logged(found) == ["fvu"]
    assert multiples(found, ["fvu", "odd"]).count("nothing logged") == 1


def test_the_figure_that_zooms_is_drawn_when_it_is_asked_for(open_app: Open):
    app = open_app(run="signed", view="training")
    assert not app.get("plotly_chart")
    assert "zoom into FVU" in drawn(app)
    zoomed = open_app(run="signed", view="training", part="zoom")
    assert len(zoomed.get("plotly_chart")) == 1
    assert address(zoomed)["part"] == "zoom"


def test_a_log_without_fvu_has_no_figure_to_zoom(open_app: Open, runs: Path, tmp_path: Path):
    run = tmp_path / "runs" / "one"
    shutil.copytree(runs / "plain", run)
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "tokens": 9, "loss": 1.0}) + "\n")
    page = drawn(open_app(run.parent, run="one", view="training", part="zoom"))
    assert "has neither FVU nor dead latents" in page


@pytest.mark.browser
@pytest.mark.slow
def test_the_pointer_reads_all_curves_at_one_step(page: Page, server: str):
    page.goto(f"{server}/?run=signed&view=training")
    charts = page.locator(".small")
    fvu = charts.filter(has_text="FVU").locator(".curve")
    box = fvu.bounding_box()
    assert box is not None
    # The first step is at the axis.
    fvu.hover(position={"x": box["width"] * 0.06, "y": box["height"] / 2})
    expect(page.locator(".tip")).to_have_text("96 tokens\nFVU 1.00")
    dead = charts.filter(has_text="Dead").locator("h3 b")
    expect(dead).to_have_text("9")
    page.locator("h1").hover()
    expect(page.locator(".tip")).to_have_count(0)
    expect(dead).to_have_text("2")
    page.get_by_role("link", name="zoom into FVU").click()
    expect(page.locator(".js-plotly-plot")).to_be_visible()

import json
import shutil
from pathlib import Path

import pytest
from apps.driving import Open, curves, drawn
from playwright.sync_api import Page, expect


def test_every_logged_figure_has_a_chart_and_those_of_every_run_come_first(
    open_app: Open, runs: Path, tmp_path: Path
):
    run = tmp_path / "runs" / "one"
    shutil.copytree(runs / "plain", run)
    lines = [{"step": s, "tokens": 9 * s, "aux_k": s, "fvu": 1 / s, "note": "x"} for s in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    app = open_app(run.parent, run="one", view="training")
    assert curves(app) == ["FVU", "aux k"]
    assert "2 logged steps" in drawn(app)


@pytest.mark.browser
@pytest.mark.slow
def test_the_pointer_reads_all_curves_at_one_step(page: Page, server: str):
    page.goto(f"{server}/?run=signed&view=training")
    chart = page.locator(".js-plotly-plot")
    box = chart.bounding_box()
    assert box is not None
    # The last step is at the right.
    chart.hover(position={"x": box["width"] - 28, "y": box["height"] / 4})
    read = chart.locator(".hoverlayer")
    for name in ("FVU", "L0", "latents silent of late"):
        expect(read).to_contain_text(name)

"""Driving the app without a browser."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

# Each AppTest would look through all installed packages for components, for most of its time:
# see test_patches.
looked_for = cache(manifest_scanner.scan_component_manifests)
manifest_scanner.scan_component_manifests = looked_for

APP = Path(__file__).parents[2] / "apps" / "feature_browser" / "server" / "app.py"
Open = Callable[..., AppTest]


def drawn(app: AppTest) -> str:
    """All the HTML that the app has put on the page, but for the help and what is only saved."""
    assert not app.exception
    canvases = app.get("bidi_component")
    page = "".join(json.loads(canvas.proto.json)["html"] for canvas in canvases)
    page = re.sub("<dialog.*?</dialog>", "", page, flags=re.DOTALL)
    return re.sub("<span hidden>.*?</span>|</?data( value[^>]*)?>", "", page)


def curves(app: AppTest) -> list[str]:
    """The names of what the page's figures draw."""
    charts = [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]
    return [trace.get("name", "") for chart in charts for trace in chart["data"]]


def address(app: AppTest) -> dict[str, str]:
    return {
        name: values if isinstance(values, str) else values[-1]
        for name, values in app.query_params.items()
    }

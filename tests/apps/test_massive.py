"""Massive activations in the app: not read, not changed, and latents that serve them set apart."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from apps.driving import Open, address, drawn
from conftest import SINK
from feature_browser.data.catalogue import read_card
from feature_browser.live.model import live_run
from feature_browser.live.prompt import read_prompt

from saelab.analysis.feature_file import write_features
from saelab.analysis.records import Features

PROMPT = f"the dog ran {SINK} the tree"


@pytest.fixture(scope="module")
def root(sink_run, sink_lm, tmp_path_factory) -> Path:
    from saelab.analysis.features import FeatureOptions, collect_features
    from saelab.training.run import Run

    root = tmp_path_factory.mktemp("sinks")
    run = Run(shutil.copytree(sink_run.path, root / "topk"))
    collect_features(run, sink_lm, FeatureOptions(n_tokens=300, n_examples=6, reach=3))
    return root


@pytest.fixture(scope="module")
def serving(root: Path, tmp_path_factory) -> Path:
    """The same, as if latents 3 and 5 had fired on massive activations: everywhere, and mostly."""
    copy = shutil.copytree(root, tmp_path_factory.mktemp("serving") / "runs")
    features = Features(copy / "topk")
    arrays = {name: np.array(features.file[name]) for name in features.file.arrays}
    fired = arrays["latent/n_fired"]
    arrays["latent/n_massive"][[3, 5]] = [fired[3], fired[5] - 1]
    facts = features.file.facts | {"massive": {"above_norm": 4.5, "rows": 17}}
    write_features(copy / "topk" / "features.h5", arrays, facts)
    return copy


def test_a_massive_token_is_not_read_and_says_why(root: Path):
    live = live_run(read_card(root / "topk", root))
    reading = read_prompt(live, PROMPT)
    assert reading.unread[0] == "a special token: this SAE is not trained on it"
    assert reading.unread[4].startswith("a massive activation, of norm ")
    assert reading.unread[4].endswith(f"trained up to {live.domain.max_norm:,.0f}")
    assert [bool(why) for why in reading.unread] == [True, False, False, False, True, False, False]
    assert not np.isin(reading.position, [0, 4]).any()
    assert set(reading.position.tolist()) == {1, 2, 3, 5, 6}


def test_the_page_counts_them(root: Path, open_app: Open):
    page = drawn(open_app(root, run="topk", view="try", prompt=PROMPT))
    assert "2 tokens not read, since training left such ones out" in page


def test_circuits_and_attention_say_where_an_sae_is_not_applied(circuit_runs: Path, open_app: Open):
    graph = next((circuit_runs / "heads" / "circuits").glob("*.h5")).stem
    place = {"view": "circuit", "run": "heads", "graph": graph}
    page = drawn(open_app(circuit_runs, **place))
    assert "since training left such tokens out: topk, heads at &lt;bos&gt; @0" in page
    node = "error topk @0"
    shown = drawn(open_app(circuit_runs, **place, node=node, pins=node, nodes="100"))
    assert "not applied: all of topk" in shown
    assert "all of the residual stream: topk is not applied here" in shown
    app = open_app(circuit_runs, view="attention", run="heads", prompt="the big cat sat on a red")
    place = address(app) | {"prompt": "the big cat sat on a red"}
    for latent in range(32):
        page = drawn(open_app(circuit_runs, **place | {"latent": str(latent)}))
        if "Which source tokens" in page:
            break
    assert "since training left such tokens out: topk, heads at &lt;bos&gt; @0" in page


def test_latents_that_serve_them_can_be_hidden_or_shown_alone(serving: Path, open_app: Open):
    every = drawn(open_app(serving, run="topk", view="latents", sort="latent"))
    hidden = drawn(open_app(serving, run="topk", view="latents", keep="ordinary"))
    alone = drawn(open_app(serving, run="topk", view="latents", keep="massive", sort="latent"))
    assert "massive 2" in every
    assert "leaves out latents that fire mostly on massive activations" in hidden
    for latent in (3, 5):
        link = f'Label of latent {latent}"'
        assert link in alone
        assert link in every
        assert link not in hidden
    assert "2 of 32 latents" in alone


def test_health_counts_and_lists_them(serving: Path, root: Path, open_app: Open):
    page = drawn(open_app(serving, run="topk", view="health", keep="massive"))
    assert "2 latents fire only or mostly on massive activations" in page
    assert "17 of" in page
    assert "above 4" in page
    assert page.index("latent=3") < page.index("latent=5")
    none = drawn(open_app(root, run="topk", view="health", keep="massive"))
    assert "No latent fires mostly on massive activations." in none


def test_a_file_that_does_not_know_says_so(runs: Path, open_app: Open):
    page = drawn(open_app(runs, run="plain", view="health", keep="massive"))
    assert "features.h5 does not say which rows are massive activations" in page
    assert "massive" not in drawn(open_app(runs, run="plain", view="latents"))


def test_the_latents_own_page_says_it(serving: Path, open_app: Open):
    assert "only on them" in drawn(open_app(serving, run="topk", view="latent", latent="3"))
    assert "mostly on them" in drawn(open_app(serving, run="topk", view="latent", latent="5"))
    assert "on them" not in drawn(open_app(serving, run="topk", view="latent", latent="4"))

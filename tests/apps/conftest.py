"""A small directory of runs with known contents, made without a language model or a training."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from apps.driving import APP, Open
from streamlit.testing.v1 import AppTest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

D_SAE, DEAD, N_CONTEXTS, LENGTH, REACH, N_EXAMPLES = 32, 31, 60, 48, 16, 12
HOSTILE = ["<bos>", "<script>alert(1)</script>", "\n", "a\tb", "\u202eevil", "her", "him", "ring"]
ALSO_HOSTILE = {
    20: "<img src=x onerror=alert(1)>",
    21: "nul\x00",
    22: "\u05e9\u05dc\u05d5\u05dd",
    # The two halves of an emoji, as a byte-level tokenizer may cut it.
    23: b"\xf0\x9f".decode(errors="replace"),
    24: b"\x98\x80".decode(errors="replace"),
    25: "'\"><a href=javascript:alert(1)>",
}
VOCABULARY = HOSTILE + [ALSO_HOSTILE.get(i, f"word{i}") for i in range(len(HOSTILE), D_SAE - 1)]


@pytest.fixture(autouse=True)
def _heap_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each load of a model would seek garbage in what all tests have brought, seconds long."""
    monkeypatch.setattr("gc.unfreeze", lambda: None)


@pytest.fixture
def open_app(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Open the app at an address, by default on the runs of conftest.py."""

    def opened(root: Path = runs, **address: str) -> AppTest:
        monkeypatch.setattr("sys.argv", ["app.py", str(root)])
        app = AppTest.from_file(str(APP), default_timeout=30)
        for name, value in address.items():
            app.query_params[name] = value
        return app.run()

    return opened


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`signed` (signed codes, evaluated with labels), `plain` (neither), `bare` (no features)."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "signed", variant="abs-topk")
    write_run(root / "plain", variant="topk")
    write_run(root / "bare", variant="topk")
    (root / "bare" / "features.h5").unlink()
    write_recovery(root / "signed")
    write_steering(root / "signed")
    return root


@pytest.fixture(scope="session")
def live_runs(small_run, random_lm, tmp_path_factory) -> Path:
    """`topk`: a trained SAE with features, of a random model that knows the words of SENTENCE."""
    import shutil

    from saelab.analysis.features import FeatureOptions, collect_features
    from saelab.training.run import Run

    root = tmp_path_factory.mktemp("live")
    run = Run(shutil.copytree(small_run.path, root / "topk"))
    collect_features(run, random_lm, FeatureOptions(n_tokens=300, n_examples=12, reach=3))
    return root


@pytest.fixture(scope="session")
def circuit_runs(live_runs: Path, small_store, random_lm, tmp_path_factory) -> Path:
    """`topk` as in `live_runs`; `heads` reads the next block's heads and has a graph of both."""
    from conftest import small_config

    from saelab.analysis.features import FeatureOptions, collect_features
    from saelab.cli import main
    from saelab.training.loop import train

    root = tmp_path_factory.mktemp("live-circuits")
    shutil.copytree(live_runs / "topk", root / "topk")
    heads = train(small_config(small_store, site="blocks.1.attn.hook_z"), out=root / "heads")
    collect_features(heads, random_lm, FeatureOptions(n_tokens=300, n_examples=12, reach=3))
    runs = [str(root / name) for name in ("heads", "topk")]
    words = ["--prompt", "the big cat sat on a red", "--target", "dog", "--n-members", "0"]
    assert main(["circuit", *runs, *words, "--device", "cpu"]) == 0
    return root


def write_run(path: Path, variant: str) -> None:
    import torch

    from saelab.analysis.feature_file import write_features
    from saelab.files import atomic_write, atomic_write_json
    from saelab.sae.storage import save_sae
    from saelab.sae.variants import SAE_CONFIG
    from saelab.training.config import TrainConfig

    sae = SAE_CONFIG.validate_python({"variant": variant, "d_sae": D_SAE, "k": 4})
    config = TrainConfig(
        sae=sae, activations=Path("activations"), site="blocks.2.hook_resid_post", n_tokens=2880
    )
    atomic_write(path / "config.json", config.to_json().encode())
    atomic_write_json(path / "provenance.json", {"model": {"name": "tiny"}, "corpus": {}})
    save_sae(sae.build(8, torch.Generator().manual_seed(0)), path / "weights.safetensors")
    atomic_write_json(
        path / "evaluation" / "reconstruction.json",
        {"fvu": 0.028, "l0": 4.0, "dead": 1, "d_sae": D_SAE},
    )
    atomic_write_json(path / "evaluation" / "downstream.json", {"ce_recovered": 0.991})
    lines = [
        {"step": s, "tokens": 96 * s, "fvu": 1 / s, "l0": 4.0, "dead": 9 - s // 4}
        for s in range(1, 31)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {"n_tokens": N_CONTEXTS * LENGTH, "reach": REACH, "seed": 0, "sae_sha256": "ab" * 32}
    with tempfile.TemporaryDirectory() as directory:
        arrays = feature_arrays(Path(directory), signed=variant == "abs-topk")
    write_features(path / "features.h5", arrays, facts)


def write_steering(path: Path) -> None:
    """Both poles of every latent; the first four latents have too few examples for S_in."""
    from saelab.analysis.steering.records import steering_path
    from saelab.analysis.steering.steering_file import write_arrays
    from saelab.files import atomic_write_json

    n = 2 * D_SAE
    latent = np.tile(np.arange(D_SAE), 2)
    given = np.where(latent < 4, np.nan, latent / D_SAE)
    arrays = {
        "latent": latent,
        "sign": np.repeat([1, -1], D_SAE),
        "input": given,
        "output": np.linspace(1.0, -0.25, n).astype(np.float32),
        "n_examples": np.where(latent < 4, 2, 40),
        "rank": np.arange(n),
        "probability": np.linspace(0.9, 0.0, n).astype(np.float32),
        "lens": np.stack([latent % len(VOCABULARY)] * 3, axis=1),
        "peaks": np.full((n, 5), -1, np.int32),
    }
    write_arrays(steering_path(path), arrays, VOCABULARY, {"prompt": "<i>she</i> said"})
    row = {"latent": 7, "sign": -1, "input": None, "output": 0.4, "factor": 2.0, "success": 1.5,
           "plain_success": 0.25, "perplexity": 9.5}  # fmt: skip
    none = {"score": "none", "threshold": None, "share": None, "n": 2, "success": 1.0, "gain": 0.5,
            "ratio": 1.0}  # fmt: skip
    high = none | {"score": "output", "threshold": 0.01, "n": 1, "success": 1.5, "ratio": 1.5}
    values = {"latents": [row], "filters": [none, high]}
    atomic_write_json(path / "evaluation" / "steering_success.json", values)


def write_recovery(path: Path) -> None:
    from saelab.files import atomic_write_json

    feature = {
        "label": "pending_female", "description": "A woman is still to be <referred> to.",
        "frequency": 0.03, "latent": 5, "sign": 1, "threshold": 0.4, "f1": 0.86, "precision": 0.9,
        "recall": 0.82, "auroc": 0.97, "best_auroc": 0.98, "probe_auroc": 0.99, "probe_f1": 0.95,
    }  # fmt: skip
    other = feature | {"label": "year", "latent": 6, "sign": -1, "f1": 0.3, "probe_auroc": 0.7}
    labels = [None if i == DEAD else ("year" if i == 6 else "pending_female") for i in range(D_SAE)]
    scores = [0.86 if i == 5 else 0.02 for i in range(D_SAE)]
    values = {
        "features": [feature, other],
        "too_rare": ["sunday"],
        "latents": {"label": labels, "f1": scores, "auroc": [0.5 + s / 2 for s in scores]},
    }
    atomic_write_json(path / "evaluation" / "recovery.json", values)


def feature_arrays(directory: Path, *, signed: bool) -> dict[str, np.ndarray]:
    """Latent i fires on token i, on the odd positions with a negative sign if `signed`.

    On every token the next latent nearly fires.
    """
    from analysis.features.cases import tensors

    from saelab.analysis.feature_file import pack_vocabulary
    from saelab.analysis.features import FeatureOptions
    from saelab.analysis.features.codes import (
        ContextBlock,
        Events,
        Piece,
        RecordedCodes,
        write_shard,
    )
    from saelab.analysis.features.evidence import evidence_arrays

    draw = np.random.default_rng(0)
    tokens = draw.integers(1, len(VOCABULARY), (N_CONTEXTS, LENGTH))
    tokens[:, 0] = 0
    value = draw.gamma(2.0, 0.8, tokens.shape).astype(np.float32) + 0.05
    if signed:
        value[:, 1::4] *= -0.5
    rows = np.arange(tokens.size)
    fired = Events(*tensors(rows, tokens.ravel(), value.ravel()))
    close = np.full(tokens.size, 0.9, np.float32)
    missed = (tokens.ravel() + 1) % DEAD
    near = Events(*tensors(rows, missed, 0.9 * np.abs(value.ravel()), close))
    text = ContextBlock(tokens, np.arange(N_CONTEXTS) * 37)
    write_shard(directory / "codes_000000.h5", [Piece(rows, fired, near)], [text], D_SAE)
    options = FeatureOptions(n_examples=N_EXAMPLES, reach=REACH)
    evidence = evidence_arrays(RecordedCodes(directory), options, len(VOCABULARY))
    return evidence | _written(draw) | pack_vocabulary(VOCABULARY)


def _written(draw: np.random.Generator) -> dict[str, np.ndarray]:
    effects = np.sort(draw.normal(0, 2, (D_SAE, 24)).astype(np.float32))[:, ::-1]
    others = (np.arange(D_SAE)[:, None] + np.arange(1, 9)) % D_SAE
    words = draw.integers(1, len(VOCABULARY), (D_SAE, 24)).astype(np.int32)
    return {
        "logits/top_tokens": words[:, :12],
        "logits/top_values": effects[:, :12].copy(),
        "logits/bottom_tokens": words[:, 12:],
        "logits/bottom_values": effects[:, :11:-1].copy(),
        "neighbours/latents": others.astype(np.int32),
        "neighbours/cosine": np.tile(np.linspace(0.8, -0.3, 8), (D_SAE, 1)).astype(np.float32),
        "heads/weights": np.tile([0.75, 0.25], (D_SAE, 1)).astype(np.float32),
    }


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """Headless Chromium; tests that want it are skipped where there is none."""
    from apps.serving import NAMES, chromium, headless

    found = chromium()
    if found is None:
        message = f"None of {', '.join(NAMES)} is installed."
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with headless(found) as browser:
        yield browser


@pytest.fixture(scope="session")
def server(runs: Path) -> Iterator[str]:
    """Where the app answers for `runs`."""
    from apps.serving import served

    with served(runs) as server:
        yield server.url


@pytest.fixture(scope="session")
def profile(browser: "Browser") -> "Iterator[BrowserContext]":
    """A reader's cache: each page of its own would fetch and compile Streamlit's scripts anew."""
    context = browser.new_context(viewport={"width": 1440, "height": 940})
    yield context
    context.close()


@pytest.fixture
def page(profile: "BrowserContext") -> "Iterator[Page]":
    """A window of its own."""
    from apps.serving import PATIENCE_S
    from playwright.sync_api import expect

    page = profile.new_page()
    page.set_default_timeout(1000 * PATIENCE_S)
    expect.set_options(timeout=1000 * PATIENCE_S)
    yield page
    page.close()


@pytest.fixture
def errors(page: "Page") -> list[str]:
    """What the page complained about."""
    from apps.serving import listen

    return listen(page)

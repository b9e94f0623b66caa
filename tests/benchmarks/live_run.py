"""A small run of the shipped language model, made by saelab's own commands in seconds."""

import tempfile
from pathlib import Path

from saelab.cli import main

SITE = "blocks.2.hook_resid_post"


def write_live_run(path: Path) -> None:
    """Train a TopK SAE on 20,000 tokens of the tiny model, and collect its features."""
    with tempfile.TemporaryDirectory() as directory:
        store = f"{directory}/activations"
        tokens = ["--n-tokens", "20000"]
        _do(
            "harvest", "--model", "tiny", "--text", "tiny", "--sites", SITE, *tokens, "--out", store
        )
        sizes = ["--d-sae", "512", "--k", "8", "--n-tokens", "100000"]
        _do("train", "topk", "--activations", store, "--site", SITE, *sizes, "--out", str(path))
        _do("features", str(path), *tokens)


def _do(*words: str) -> None:
    code = main([*words, "--device", "cpu"])
    assert code == 0, words

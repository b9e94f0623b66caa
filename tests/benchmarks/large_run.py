"""A finished run of any size with made-up contents, written by saelab's own writers.

What it holds means nothing, but it is as large as the real thing: every dataset of `features.h5`,
steering scores, known features, evaluations and a log. Planted: token t makes its own
`firings // 2` latents fire wherever it stands.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

SITE = "blocks.6.hook_resid_post"
LABELS = ["year", "city", "her", "bracket_depth", "is_verb", "quote_open", "digit", "plural"]


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Attributes:
        firings: of each token.
        n_steps: lines of the training log.
    """

    d_sae: int = 65_536
    d_in: int = 256
    n_contexts: int = 1024
    length: int = 128
    vocabulary: int = 20_000
    firings: int = 32
    n_steps: int = 5000


def write_large_run(path: Path, size: Size, seed: int = 0) -> None:
    """Write a TopK run to `path`. Two runs of one size share the directions of half their latents.

    Takes about a minute and 700 MiB of memory at the default size.
    """
    from saelab.analysis.feature_file import write_features
    from saelab.analysis.features.weights import neighbour_arrays
    from saelab.files import atomic_write_json
    from saelab.sae.storage import save_sae

    draw = np.random.default_rng(seed)
    sae = _sae(path, size, seed)
    save_sae(sae, path / "weights.safetensors")
    facts = {"n_tokens": size.n_contexts * size.length, "reach": 16, "seed": seed,
             "sae_sha256": "ab" * 32, "context_length": size.length, "split": "train"}  # fmt: skip
    words = _words(size)
    arrays = _evidence(size, draw) | _written(size, draw)
    arrays |= neighbour_arrays(sae.W_dec.detach(), "neighbours")
    write_features(path / "features.h5", arrays | _vocabulary(words), facts)
    _write_steering(path, size, draw, words)
    n_fired = arrays["latent/n_fired"]
    _write_evaluations(path / "evaluation", size, draw, n_fired)
    lines = [
        {"step": s, "tokens": 4096 * s, "loss": 1 / s, "fvu": 1 / s**0.5, "l0": float(size.firings),
         "dead": size.d_sae // (s + 1), "lr": 1e-3, "tokens_per_second": 1e5 + s}
        for s in range(1, size.n_steps + 1)
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    atomic_write_json(path / "provenance.json", {"model": {"name": "made-up"}, "corpus": {}})


def _sae(path: Path, size: Size, seed: int):
    import torch

    from saelab.files import atomic_write
    from saelab.sae.variants import SAE_CONFIG
    from saelab.training.config import TrainConfig

    options = {"variant": "topk", "d_sae": size.d_sae, "k": size.firings}
    config = TrainConfig(
        sae=SAE_CONFIG.validate_python(options),
        activations=Path("activations"),
        site=SITE,
        n_tokens=size.n_contexts * size.length,
    )
    path.mkdir(parents=True)
    atomic_write(path / "config.json", config.to_json().encode())
    sae = config.sae.build(size.d_in, torch.Generator().manual_seed(0))
    if seed:
        fresh = config.sae.build(size.d_in, torch.Generator().manual_seed(seed))
        half = size.d_sae // 2
        with torch.no_grad():
            sae.W_dec[half:] = fresh.W_dec[half:]
            sae.W_dec.copy_(sae.W_dec.flip(0))
    return sae


def _words(size: Size) -> list[str]:
    special = ["<bos>", "\n", "<img src=x onerror=alert(1)>", " \u202eevil", "\x00", "\U0001f600"]
    return special + [f" word{i}" for i in range(len(special), size.vocabulary)]


def _vocabulary(words: list[str]) -> dict[str, ndarray]:
    from saelab.analysis.feature_file import pack_vocabulary

    return pack_vocabulary(words)


def _evidence(size: Size, draw: np.random.Generator) -> dict[str, ndarray]:
    from saelab.analysis.features import FeatureOptions
    from saelab.analysis.features.codes import RecordedCodes, write_shard
    from saelab.analysis.features.evidence import evidence_arrays

    with tempfile.TemporaryDirectory() as directory:
        at_once = max(1, 2**15 // size.length)
        for shard, first in enumerate(range(0, size.n_contexts, at_once)):
            n = min(at_once, size.n_contexts - first)
            pieces, text = _codes(size, first, n, draw)
            write_shard(Path(directory) / f"codes_{shard:06d}.h5", pieces, text, size.d_sae)
        return evidence_arrays(RecordedCodes(Path(directory)), FeatureOptions(), size.vocabulary)


def _codes(size: Size, first: int, n: int, draw: np.random.Generator):
    """The codes of `n` contexts: half of a token's latents are the token's own, half chance."""
    from analysis.features.cases import tensors

    from saelab.analysis.features.codes import ContextBlock, Events, Piece

    # Frequencies fall as one over the rank, as words' do.
    tokens = np.floor(size.vocabulary ** draw.random((n, size.length))).astype(np.int64) - 1
    rows, half = tokens.size, size.firings // 2
    own = (tokens.reshape(-1, 1) * half + np.arange(half)) * 40_503 % size.d_sae
    chance = draw.integers(0, size.d_sae, (rows, size.firings - half))
    latent = np.sort(np.concatenate([own, chance], axis=1), axis=1)
    once = np.ones(latent.shape, bool)
    once[:, 1:] = latent[:, 1:] != latent[:, :-1]
    row = np.broadcast_to(np.arange(rows)[:, None], latent.shape)[once]
    value = draw.gamma(2.0, 0.8, len(row)).astype(np.float32) + 0.05
    missed = draw.integers(0, size.d_sae, rows)
    close = draw.random(rows).astype(np.float32)
    near = Events(*tensors(np.arange(rows), missed, close, close))
    place = first * size.length + np.arange(rows)
    block = ContextBlock(tokens, first + np.arange(n))
    return [Piece(place, Events(*tensors(row, latent[once], value)), near)], [block]


def _written(size: Size, draw: np.random.Generator) -> dict[str, ndarray]:
    effects = np.sort(draw.normal(0, 2, (size.d_sae, 24)).astype(np.float32))[:, ::-1]
    words = draw.integers(0, size.vocabulary, (size.d_sae, 24)).astype(np.int32)
    return {
        "logits/top_tokens": words[:, :12].copy(),
        "logits/top_values": effects[:, :12].copy(),
        "logits/bottom_tokens": words[:, 12:].copy(),
        "logits/bottom_values": effects[:, :11:-1].copy(),
    }


def _write_steering(path: Path, size: Size, draw: np.random.Generator, words: list[str]) -> None:
    from saelab.analysis.steering.records import steering_path
    from saelab.analysis.steering.steering_file import write_arrays

    n = size.d_sae
    arrays = {
        "latent": np.arange(n),
        "sign": np.ones(n, np.int64),
        "input": draw.beta(1, 6, n),
        "output": draw.normal(0, 0.2, n).astype(np.float32),
        "n_examples": np.full(n, 40),
        "rank": draw.permutation(n),
        "probability": draw.random(n, dtype=np.float32),
        "lens": draw.integers(0, len(words), (n, 3)),
        "peaks": np.full((n, 5), -1, np.int32),
    }
    write_arrays(steering_path(path), arrays, words, {"prompt": "I think"})


def _write_evaluations(
    directory: Path, size: Size, draw: np.random.Generator, n_fired: ndarray
) -> None:
    from saelab.files import atomic_write_json

    n, n_tokens = size.d_sae, size.n_contexts * size.length
    dead = int((n_fired == 0).sum())
    names = draw.integers(0, len(LABELS), n)
    f1 = np.round(draw.beta(1, 5, n), 4)
    best = [int(np.flatnonzero(names == i)[f1[names == i].argmax()]) for i in range(len(LABELS))]
    features = [
        {"label": label, "description": f"Made up: {label}.", "frequency": 0.03,
         "latent": latent, "sign": 1, "threshold": 0.4, "f1": float(f1[latent]), "precision": 0.9,
         "recall": 0.8, "auroc": 0.95, "best_auroc": 0.97, "probe_auroc": 0.99, "probe_f1": 0.95}
        for label, latent in zip(LABELS, best, strict=True)
    ]  # fmt: skip
    of_latents = {
        "label": [LABELS[i] for i in names],
        "f1": f1.tolist(),
        "auroc": (0.5 + f1 / 2).tolist(),
    }
    for name, values in {
        "reconstruction": {"fvu": 0.11, "l0": float(size.firings), "dead": dead, "d_sae": n},
        "downstream": {"ce_recovered": 0.97},
        "density": {"frequency": (n_fired / n_tokens).tolist(), "n_tokens": n_tokens},
        "recovery": {"features": features, "too_rare": [], "latents": of_latents},
    }.items():
        atomic_write_json(directory / f"{name}.json", values)

"""A small directory of runs with known contents, made without a language model or a training."""

import json
from pathlib import Path

import numpy as np
import pytest

D_SAE, DEAD, N_CONTEXTS, LENGTH, REACH, N_EXAMPLES = 32, 31, 60, 48, 16, 12
HOSTILE = ["<bos>", "<script>alert(1)</script>", "\n", "a\tb", "\u202eevil", "her", "him", "ring"]
VOCABULARY = HOSTILE + [f"word{i}" for i in range(len(HOSTILE), D_SAE - 1)]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`signed` (signed codes, evaluated with labels), `plain` (neither), `bare` (no features)."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "signed", variant="abs-topk")
    write_run(root / "plain", variant="topk")
    write_run(root / "bare", variant="topk")
    (root / "bare" / "features.h5").unlink()
    write_recovery(root / "signed")
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
    write_features(path / "features.h5", feature_arrays(signed=variant == "abs-topk"), facts)


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


def feature_arrays(*, signed: bool) -> dict[str, np.ndarray]:
    """Latent i fires on token i, on the odd positions with a negative sign if `signed`."""
    from saelab.analysis.feature_file import pack_vocabulary

    draw = np.random.default_rng(0)
    tokens = draw.integers(1, len(VOCABULARY), (N_CONTEXTS, LENGTH)).astype(np.int32)
    tokens[:, 0] = 0
    value = draw.gamma(2.0, 0.8, tokens.shape).astype(np.float32) + 0.05
    if signed:
        value[:, 1::4] *= -0.5
    arrays = {
        "corpus/tokens": tokens,
        "corpus/document": np.arange(N_CONTEXTS, dtype=np.int64) * 37,
        **_figures(tokens, value),
        **_written(draw),
        **pack_vocabulary(VOCABULARY),
    }
    kinds = ("top", "negative", "random") if signed else ("top", "random")
    for kind in kinds:
        arrays |= _examples(kind, tokens, value)
    return arrays


def _figures(tokens: np.ndarray, value: np.ndarray) -> dict[str, np.ndarray]:
    from saelab.analysis.histogram import BINS_PER_SIDE

    own = [value[tokens == latent] for latent in range(D_SAE)]
    spans = np.array([np.abs(v).max(initial=0.001) * 1.3 for v in own], dtype=np.float32)
    counts = [
        np.histogram(v, bins=2 * BINS_PER_SIDE, range=(-s, s))[0]
        for v, s in zip(own, spans, strict=True)
    ]
    return {
        "latent/n_fired": np.array([len(v) for v in own], dtype=np.int64),
        "latent/n_negative": np.array([(v < 0).sum() for v in own], dtype=np.int64),
        "latent/max": np.array([np.abs(v).max(initial=0) for v in own], dtype=np.float32),
        "latent/mean": np.array([np.abs(v).sum() / max(1, len(v)) for v in own], dtype=np.float32),
        "histogram/range": spans,
        "histogram/counts": np.array(counts, dtype=np.uint32),
    }


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
    }


def _examples(kind: str, tokens: np.ndarray, value: np.ndarray) -> dict[str, np.ndarray]:
    shape = (D_SAE, N_EXAMPLES)
    context, position = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    peak, window = np.zeros(shape, np.float32), np.zeros((*shape, 2 * REACH + 1), np.float16)
    for latent in range(D_SAE):
        padded = np.pad(np.where(tokens == latent, value, 0), ((0, 0), (REACH, REACH)))
        places = np.argwhere(tokens == latent)
        own = value[tokens == latent]
        wanted = {"top": np.flatnonzero(own > 0), "negative": np.flatnonzero(own < 0),
                  "random": np.arange(len(own))}[kind]  # fmt: skip
        key = {"top": own, "negative": -own, "random": (own * 7919) % 1}[kind]
        chosen = wanted[np.argsort(-key[wanted], kind="stable")][:N_EXAMPLES]
        for slot, event in enumerate(chosen):
            c, p = places[event]
            context[latent, slot], position[latent, slot] = c, p
            peak[latent, slot] = own[event]
            window[latent, slot] = padded[c, p : p + 2 * REACH + 1]
    return {f"{kind}/context": context, f"{kind}/position": position, f"{kind}/value": peak,
            f"{kind}/window": window}  # fmt: skip

"""Llama Scope and later SAEs of OpenMOSS (arXiv 2410.20526): nn.Linear tensors and a configuration.

Two layouts: `hyperparams.json` with `checkpoints/final.safetensors`, and `config.json` with
`sae_weights.safetensors`. encoder.weight is [d_sae d_in], decoder.weight [d_out d_sae].

The SAE reads x s_in and writes y s_out, with s = sqrt(d_model) / (mean norm of the dataset's rows)
of each site. The one threshold of the first layout applies to codes in units of the written rows,
times the atoms' norms: a > T s_out / ||W_dec[j]|| for codes a of scaled rows (OpenMOSS's
`standardize_parameters_of_dataset_norm` followed by `transform_to_unit_decoder_norm`, combined
here; SAELens' loader is the same for unit atoms). Thresholds per latent, of the second layout,
apply to codes of scaled rows times the atoms' norms.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.config import UsageError
from saelab.sae.interop.contents import NamedTensors, Record
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.restricted import load_json, load_safetensors
from saelab.sae.row_norm import RowNorm

SETTINGS_FILE = "hyperparams.json"
WEIGHTS = Path("checkpoints", "final.safetensors")
LATER_SETTINGS_FILE, LATER_WEIGHTS = "config.json", Path("sae_weights.safetensors")
NEEDED = {"encoder.weight", "encoder.bias", "decoder.weight"}
LOG_THRESHOLD = "log_jumprelu_threshold"
MEAN_NORM = "dataset_average_activation_norm"


def read_llama_scope(path: Path) -> ForeignSAE:
    """The SAE or transcoder in the directory `path`.

    Raises:
        UsageError: a file is missing, damaged or contradicts the other, or its rule is not known.
    """
    first = (path / SETTINGS_FILE).exists()
    cfg = load_json(path / (SETTINGS_FILE if first else LATER_SETTINGS_FILE))
    stored = load_safetensors(path / (WEIGHTS if first else LATER_WEIGHTS))
    norms = {name: t for name, t in stored.tensors.items() if name.startswith(f"{MEAN_NORM}.")}
    weights = NamedTensors(
        stored.path, {name: t for name, t in stored.tensors.items() if name not in norms}
    )
    weights.check_names(NEEDED, {"decoder.bias", LOG_THRESHOLD})
    _refuse_other_kinds(cfg)
    reads, writes = cfg.text("hook_point_in"), cfg.text("hook_point_out")
    transcoder = reads != writes and writes is not None
    sizes = _mean_norms(cfg, NamedTensors(stored.path, norms))
    return _built(cfg, weights, sizes, reads, writes if transcoder else None)


def _built(
    cfg: Record,
    weights: NamedTensors,
    sizes: tuple[float | None, float | None],
    reads: str | None,
    writes: str | None,
) -> ForeignSAE:
    W_enc = weights.matrix("encoder.weight").T
    W_dec = weights.matrix("decoder.weight").T
    by_constant = _normalisation(cfg) == "dataset-wise"
    if by_constant and writes is not None and None in sizes:
        raise UsageError(
            f"{cfg.path} has no {MEAN_NORM} of both sites, by which a transcoder is scaled."
        )
    s_in, s_out = (
        W_enc.shape[0] ** 0.5 / size if by_constant and size is not None else 1.0 for size in sizes
    )
    b_dec = weights.tensors.get("decoder.bias")
    b_dec = W_dec.new_zeros(W_dec.shape[1]) if b_dec is None else weights.vector("decoder.bias")
    sae = ForeignSAE(
        W_enc=W_enc.float() * s_in,
        W_dec=W_dec.float() / s_out,
        b_enc=weights.vector("encoder.bias", W_enc.shape[1]),
        b_dec=b_dec / s_out,
        **_selection(cfg, weights, W_dec, s_out),
        subtract_b_dec=cfg.flag("apply_decoder_bias_to_pre_encoder", default=False),
        hook=reads,
        transcoder=writes is not None,
        hook_out=writes,
        row_norm=_row_norm(cfg),
        unscaled=by_constant and sizes[0] is None,
        source=f"Llama Scope {cfg.text('act_fn') or 'jumprelu'}",
    )
    if sae.k is not None and cfg.flag("sparsity_include_decoder_norm", default=True):
        sae = sae.with_norms_in_codes()
    return sae


def _selection(
    cfg: Record, weights: NamedTensors, W_dec: Tensor, s_out: float
) -> Mapping[str, Any]:
    """The fields of `ForeignSAE` that choose latents."""
    norms = W_dec.float().norm(dim=1).clamp_min(1e-8)
    if not cfg.flag("sparsity_include_decoder_norm", default=True):
        norms = torch.ones_like(norms)
    if LOG_THRESHOLD in weights.tensors:
        logs = weights.vector(LOG_THRESHOLD, len(norms))
        return {"threshold": logs.double().exp().float() / norms}
    activation = cfg.text("act_fn") or "jumprelu"
    if activation == "topk":
        if (k := cfg.integer("top_k")) is None:
            raise UsageError(f"{cfg.path} has no top_k, which a top-k SAE needs.")
        return {"k": k}
    threshold = cfg.number("jump_relu_threshold") or 0.0
    if activation == "relu":
        threshold = 0.0
    elif activation != "jumprelu":
        raise UsageError(
            f"{cfg.path}: act_fn is {activation[:40]!r}, which has no counterpart; jumprelu, relu "
            "and topk have."
        )
    return {"threshold": threshold * s_out / norms}


def _refuse_other_kinds(cfg: Record) -> None:
    if cfg.flag("use_glu_encoder", default=False):
        raise UsageError(f"{cfg.path}: a gated linear encoder (use_glu_encoder) is not known here.")
    kind = cfg.text("sae_type") or "sae"
    if kind != "sae":
        raise UsageError(f"{cfg.path}: sae_type is {kind[:40]!r}, but only 'sae' is read.")
    _normalisation(cfg)


def _normalisation(cfg: Record) -> str:
    name = cfg.text("norm_activation") or "dataset-wise"
    known = ("dataset-wise", "token-wise", "inference")
    if name not in known:
        raise UsageError(
            f"{cfg.path}: norm_activation is {name[:40]!r}, which no constant and no row by itself "
            f"gives; {', '.join(known)} have a counterpart."
        )
    return name


def _row_norm(cfg: Record) -> RowNorm | None:
    return "unit-norm" if _normalisation(cfg) == "token-wise" else None


def _mean_norms(cfg: Record, stored: NamedTensors) -> tuple[float | None, float | None]:
    """The mean norms of the rows that are read and written; None where no file says them."""
    stated, found = cfg.record(MEAN_NORM), []
    for key, hook in (("in", "hook_point_in"), ("out", "hook_point_out")):
        name = f"{MEAN_NORM}.{cfg.text(hook)}"
        value = stored.scalar(name) if name in stored.tensors else stated.number(key)
        if value is not None and not value > 0:
            raise UsageError(f"{cfg.path}: {MEAN_NORM} is {value:g}, but it must be positive.")
        found.append(None if value is None else float(value))
    reads, writes = found
    return reads, (reads if writes is None else writes)

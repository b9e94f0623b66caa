"""SAELens directories: cfg.json and sae_weights.safetensors, of version 6 and earlier.

SAELens has saelab's layout: W_enc [d_in d_sae], W_dec [d_sae d_in]. BatchTopK and Matryoshka SAEs
are saved for inference as `jumprelu`. A training checkpoint keeps its own architecture and a single
threshold; the scale of the activations is in a separate file beside it.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.sae.interop import pursuit
from saelab.sae.interop.contents import NamedTensors, Record
from saelab.sae.interop.foreign import ForeignSAE, Gate
from saelab.sae.interop.restricted import load_json, load_safetensors
from saelab.sae.interop.sae_lens_model import (
    BY_A_CONSTANT,
    ROW_NORMS,
    facts,
    normalisation,
    on_centred_rows,
)

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SCALER_FILE = "activation_scaler.json"

PLAIN = {"W_enc", "W_dec", "b_enc", "b_dec"}
TENSORS = {
    "standard": PLAIN,
    "jumprelu": PLAIN | {"threshold"},
    "gated": {"W_enc", "W_dec", "b_dec", "b_gate", "r_mag", "b_mag"},
    "topk": PLAIN,
    "abstopk": PLAIN,
    pursuit.PURSUIT: pursuit.STORED,
    "batchtopk": PLAIN | {"topk_threshold"},
    "matryoshka_batchtopk": PLAIN | {"topk_threshold"},
    "transcoder": PLAIN,
    "skip_transcoder": PLAIN | {"W_skip"},
    "jumprelu_transcoder": PLAIN | {"threshold"},
    "jumprelu_skip_transcoder": PLAIN | {"threshold", "W_skip"},
}
"""The tensors that each architecture saves."""
TRAINED_ON_BATCHES = ("batchtopk", "matryoshka_batchtopk")
RESCALED = ("topk", "abstopk", *TRAINED_ON_BATCHES)
"""Architectures that may multiply codes by decoder norms."""


def read_sae_lens(path: Path) -> ForeignSAE:
    """The SAE that SAELens saved in the directory `path`.

    Its codes equal those of SAELens' `encode`. If SAELens normalises inputs by one constant, or
    rescales codes by decoder norms, both are folded into the weights. What it does to each row by
    itself becomes `row_norm`, and so does the centring of a model with centred writing weights.

    Raises:
        UsageError: a file is missing, damaged or contradicts the other, or no field of `ForeignSAE`
            expresses the SAE's rule (a pursuit that stops early).
    """
    cfg = load_json(path / CONFIG_FILE)
    architecture = _architecture(cfg)
    _refuse_what_weights_cannot_hold(cfg)
    weights = _weights(path / WEIGHTS_FILE, architecture)
    sae = _as_stored(cfg, weights, architecture)
    scale, row_norm = _input_scale(path, cfg), ROW_NORMS.get(normalisation(cfg))
    unscaled = normalisation(cfg) == BY_A_CONSTANT and scale is None
    if on_centred_rows(cfg, sae):
        # A layer norm centres too, and a constant scale commutes with it.
        row_norm = row_norm or "centre"
    if sae.steps is not None:
        pursuit.refuse_a_scale(cfg, scaled=scale is not None or unscaled)
    if scale is not None:
        sae = sae.for_inputs_times(scale)
    sae = replace(sae, row_norm=row_norm, unscaled=unscaled)
    by_default = architecture in TRAINED_ON_BATCHES
    if architecture in RESCALED and cfg.flag("rescale_acts_by_decoder_norm", default=by_default):
        # A checkpoint's threshold is in units of rescaled codes; the scale divided these together
        # with the decoder's norms.
        threshold = None if sae.threshold is None else sae.threshold / (scale or 1.0)
        sae = replace(sae.with_norms_in_codes(), threshold=threshold)
    return sae


def _architecture(cfg: Record) -> str:
    architecture = cfg.text("architecture") or "standard"
    activation = cfg.text("activation_fn") or cfg.text("activation_fn_str") or "relu"
    if activation not in ("relu", "topk"):
        raise UsageError(
            f"{cfg.path}: the activation {activation[:40]!r} has no counterpart; relu and topk do."
        )
    if activation == "topk":
        return "topk"
    if architecture not in TENSORS:
        raise UsageError(
            f"{cfg.path}: the architecture {architecture[:40]!r} has no counterpart; "
            f"{', '.join(TENSORS)} do."
        )
    return architecture


def _refuse_what_weights_cannot_hold(cfg: Record) -> None:
    for key in ("hook_head_index", "hook_point_head_index"):
        head = facts(cfg, key).integer(key)
        if head is not None:
            raise UsageError(f"{cfg.path}: the SAE reads head {head} alone, which is no site here.")
    rows = normalisation(cfg)
    if _is_transcoder(cfg.text("architecture") or ""):
        if rows != "none":
            raise UsageError(
                f"{cfg.path}: a transcoder's inputs are scaled, which is not known here."
            )
        if cfg.flag("apply_b_dec_to_input", default=False):
            raise UsageError(f"{cfg.path}: a transcoder cannot subtract b_dec from what it reads.")


def _is_transcoder(architecture: str) -> bool:
    return architecture.endswith("transcoder")


def _weights(path: Path, architecture: str) -> NamedTensors:
    """The tensors under the names of the current version."""
    tensors = dict(load_safetensors(path).tensors)
    if "threshold" in TENSORS[architecture] and "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").double().exp()
    if bool((tensors.pop("scaling_factor", torch.ones(1)) != 1).any()):
        raise UsageError(
            f"{path} has a finetuning scaling factor other than 1, which SAELens 6 reads no more; "
            "fold it into W_dec."
        )
    weights = NamedTensors(path, tensors)
    weights.check_names(TENSORS[architecture])
    return weights


def _check_widths(cfg: Record, W_enc: Tensor, W_dec: Tensor | None) -> None:
    """Refuse matrices of other widths than the file states; only transcoders state d_out."""
    widths = {"d_in": ("W_enc", W_enc.shape[0]), "d_sae": ("W_enc", W_enc.shape[1])}
    if W_dec is not None:
        widths["d_out"] = "W_dec", W_dec.shape[1]
    for key, (name, width) in widths.items():
        stated = cfg.integer(key)
        if stated not in (None, width):
            raise UsageError(f"{cfg.path}: {key} is {stated}, but {name} has {width}.")


def _as_stored(cfg: Record, weights: NamedTensors, architecture: str) -> ForeignSAE:
    steps = None
    if architecture == pursuit.PURSUIT:
        weights = pursuit.with_encoder(cfg, weights)
        steps = pursuit.steps_of(cfg, weights.matrix("W_dec").shape[1])
    W_enc, W_dec = weights.matrix("W_enc"), weights.matrix("W_dec")
    d_sae, transcoder = W_enc.shape[1], _is_transcoder(architecture)
    _check_widths(cfg, W_enc, W_dec if transcoder else None)
    gated = architecture == "gated"
    threshold = _threshold(weights, architecture, d_sae)
    training = _training(cfg, architecture)
    hook = facts(cfg, "hook_name").text("hook_name") or cfg.text("hook_point")
    skip = "W_skip" in TENSORS[architecture]
    return ForeignSAE(
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=weights.vector("b_mag" if gated else "b_enc"),
        b_dec=weights.vector("b_dec"),
        threshold=threshold,
        gate=Gate(weights.vector("r_mag"), weights.vector("b_gate")) if gated else None,
        k=_k(cfg) if threshold is None and not gated and steps is None else None,
        steps=steps,
        signed=architecture == "abstopk",
        subtract_b_dec=cfg.flag("apply_b_dec_to_input", default=not transcoder),
        prefixes=_prefixes(training, d_sae),
        batch_k=training.number("k"),
        hook=hook,
        transcoder=transcoder,
        W_skip=weights.matrix("W_skip").T if skip else None,
        hook_out=facts(cfg, "hook_name_out").text("hook_name_out") if transcoder else None,
        model=facts(cfg, "model_name").text("model_name"),
        source=_source(cfg, architecture),
    )


def _threshold(
    weights: NamedTensors, architecture: str, d_sae: int
) -> Float[Tensor, " d_sae"] | None:
    """The threshold of ReLU(a); negative thresholds become zero, which has the same effect."""
    if architecture in ("standard", "transcoder", "skip_transcoder"):
        return torch.zeros(d_sae)
    if "threshold" in TENSORS[architecture]:
        return weights.vector("threshold", d_sae).clamp_min(0)
    if architecture in TRAINED_ON_BATCHES:
        return torch.full((d_sae,), weights.scalar("topk_threshold")).clamp_min(0)
    return None


def _k(cfg: Record) -> int:
    k = cfg.integer("k")
    if k is None:
        k = cfg.record("activation_fn_kwargs").integer("k")
    if k is None:
        raise UsageError(f"{cfg.path} has no k, which a top-k SAE needs.")
    return k


def _training(cfg: Record, architecture: str) -> Record:
    """What is recorded of BatchTopK training; empty for an SAE of another kind."""
    if architecture in TRAINED_ON_BATCHES:
        return cfg
    metadata = cfg.record("metadata")
    if metadata.text("training_architecture") in TRAINED_ON_BATCHES:
        return metadata.record("training_architecture_details")
    return Record(cfg.path, {})


def _prefixes(training: Record, d_sae: int) -> tuple[int, ...] | None:
    """The Matryoshka widths, ending with the full width, which SAELens may leave out."""
    widths = training.integers("matryoshka_widths")
    if widths is None or widths[-1:] == (d_sae,):
        return widths
    return (*widths, d_sae)


def _input_scale(path: Path, cfg: Record) -> float | None:
    """The constant that SAELens multiplies inputs by; None if none is stated or there is none."""
    if normalisation(cfg) != BY_A_CONSTANT or not (path / SCALER_FILE).exists():
        return None
    scale = load_json(path / SCALER_FILE).number("scaling_factor")
    if scale is None or scale <= 0:
        raise UsageError(
            f"{path / SCALER_FILE}: the scaling factor is {scale}, but it must be positive."
        )
    return float(scale)


def _source(cfg: Record, architecture: str) -> str:
    version = facts(cfg, "sae_lens_version").text("sae_lens_version") or ""
    major = re.match(r"\d{1,3}(?=\.)", version)
    return f"SAELens {major[0]} {architecture}" if major else f"SAELens {architecture}"

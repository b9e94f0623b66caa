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
from saelab.sites import Site

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SCALER_FILE = "activation_scaler.json"

IN_THE_STREAM = {
    *("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post"),
    *("hook_attn_out", "hook_mlp_out"),
}
"""Hooks in the residual stream: their values are centred when the writing weights are."""
INSIDE_HEADS = {f"attn.hook_{x}" for x in ("q", "k", "v", "z", "rot_q", "rot_k", "attn_scores")}
WITHOUT_LAYER_NORM = re.compile(
    r"(code)?llama|mi[sx]tral|gemma|qwen|olmo-?2|phi-?3|smollm|yi-", re.IGNORECASE
)
"""Models with RMS norms. TransformerLens never centres their writing weights."""
CENTRED = (
    "The SAE was trained on a model with centred writing weights: its encoder now centres each row "
    "that it reads, its codes are the same, and what it reconstructs has no mean over the "
    "coordinates, so FVU on plain rows counts that mean as missed."
)

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
    rescales codes by decoder norms, both are folded into the weights.

    Raises:
        UsageError: a file is missing, damaged or contradicts the other, or no field of `ForeignSAE`
            expresses the SAE's rule (a pursuit that stops early, normalised rows).
    """
    cfg = load_json(path / CONFIG_FILE)
    architecture = _architecture(cfg)
    _refuse_what_weights_cannot_hold(cfg)
    weights = _weights(path / WEIGHTS_FILE, architecture)
    sae = _as_stored(cfg, weights, architecture)
    scale, centred = _input_scale(path, cfg), _on_centred_rows(cfg, sae)
    if sae.steps is not None:
        pursuit.refuse_other_inputs(cfg, scale, centred=centred)
    if scale is not None:
        sae = sae.for_inputs_times(scale)
    if centred:
        sae = replace(sae.for_inputs_centred(), note=CENTRED)
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
        head = _facts(cfg, key).integer(key)
        if head is not None:
            raise UsageError(f"{cfg.path}: the SAE reads head {head} alone, which is no site here.")
    normalisation = _normalisation(cfg)
    if normalisation not in ("none", "expected_average_only_in"):
        raise UsageError(
            f"{cfg.path}: normalize_activations is {normalisation[:40]!r}, which cannot be folded "
            "into the weights; 'none' and 'expected_average_only_in' can."
        )
    if _is_transcoder(cfg.text("architecture") or ""):
        if normalisation != "none":
            raise UsageError(
                f"{cfg.path}: a transcoder's inputs are scaled, which is not known here."
            )
        if cfg.flag("apply_b_dec_to_input", default=False):
            raise UsageError(f"{cfg.path}: a transcoder cannot subtract b_dec from what it reads.")


def _on_centred_rows(cfg: Record, sae: ForeignSAE) -> bool:
    """Whether the SAE was trained on rows whose mean over the coordinates is zero.

    Raises:
        UsageError: the model's weights were processed in a way that cannot be folded into the SAE.
    """
    key = "model_from_pretrained_kwargs"
    kwargs = _facts(cfg, key).record(key)
    processed = {
        name
        for name in (
            "center_writing_weights",
            "fold_value_biases",
            "refactor_factored_attn_matrices",
        )
        if kwargs.flag(name, default=False)
    }
    hooks = [Site.find(hook) for hook in (sae.hook, sae.hook_out) if hook is not None]
    inside = [site for site in hooks if site is not None and site.part in INSIDE_HEADS]
    if inside and (changed := sorted(processed - {"center_writing_weights"})):
        raise UsageError(
            f"{cfg.path}: the SAE was trained on {inside[0].hook} of a model with {changed[0]}, "
            "which changes what that hook holds; it cannot be used on the plain model."
        )
    if "center_writing_weights" not in processed or WITHOUT_LAYER_NORM.search(sae.model or ""):
        return False
    return not hooks or (hooks[0] is not None and hooks[0].part in IN_THE_STREAM)


def _is_transcoder(architecture: str) -> bool:
    return architecture.endswith("transcoder")


def _normalisation(cfg: Record) -> str:
    value = cfg.values.get("normalize_activations")
    if isinstance(value, bool):  # as it was while there was only one way
        return "expected_average_only_in" if value else "none"
    return cfg.text("normalize_activations") or "none"


def _facts(cfg: Record, key: str) -> Record:
    """The object that holds `key`: `metadata`, or before version 6 cfg.json itself."""
    metadata = cfg.record("metadata")
    return metadata if key in metadata.values else cfg


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


def _as_stored(cfg: Record, weights: NamedTensors, architecture: str) -> ForeignSAE:
    steps = None
    if architecture == pursuit.PURSUIT:
        weights = pursuit.with_encoder(cfg, weights)
        steps = pursuit.steps_of(cfg, weights.matrix("W_dec").shape[1])
    W_enc = weights.matrix("W_enc")
    d_in, d_sae = W_enc.shape
    transcoder, W_dec = _is_transcoder(architecture), weights.matrix("W_dec")
    widths = {
        "d_in": ("W_enc", d_in),
        "d_sae": ("W_enc", d_sae),
        "d_out": ("W_dec", W_dec.shape[1]),
    }
    for key, (name, width) in widths.items():
        stated = cfg.integer(key)
        if stated not in (None, width) and (key != "d_out" or transcoder):
            raise UsageError(f"{cfg.path}: {key} is {stated}, but {name} has {width}.")
    gated = architecture == "gated"
    threshold = _threshold(weights, architecture, d_sae)
    training = _training(cfg, architecture)
    hook = _facts(cfg, "hook_name").text("hook_name") or cfg.text("hook_point")
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
        W_skip=weights.matrix("W_skip").T.contiguous() if skip else None,
        hook_out=_facts(cfg, "hook_name_out").text("hook_name_out") if transcoder else None,
        model=_facts(cfg, "model_name").text("model_name"),
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
    """The constant that SAELens multiplies inputs by; None if it is folded in or there is none."""
    if _normalisation(cfg) == "none":
        return None
    remedy = "fold it with fold_activation_norm_scaling_factor in SAELens and save again"
    if not (path / SCALER_FILE).exists():
        raise UsageError(
            f"{cfg.path}: the inputs are scaled by a constant that is not in {SCALER_FILE}; "
            f"{remedy}."
        )
    scale = load_json(path / SCALER_FILE).number("scaling_factor")
    if scale is None or scale <= 0:
        raise UsageError(f"{path / SCALER_FILE}: the scaling factor is {scale}; {remedy}.")
    return float(scale)


def _source(cfg: Record, architecture: str) -> str:
    version = _facts(cfg, "sae_lens_version").text("sae_lens_version") or ""
    major = re.match(r"\d{1,3}(?=\.)", version)
    return f"SAELens {major[0]} {architecture}" if major else f"SAELens {architecture}"

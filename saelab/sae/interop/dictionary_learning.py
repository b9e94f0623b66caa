"""dictionary_learning: `ae.pt`, a state dict, and `config.json`, which names its class.

Classes built on nn.Linear store the transposes of saelab's matrices; the others store them as
saelab does. Biases and thresholds are saved in the model's own scale.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.sae.interop.contents import NamedTensors, Record
from saelab.sae.interop.foreign import ForeignSAE, Gate
from saelab.sae.interop.restricted import load_json, load_pt

WEIGHTS_FILE = "ae.pt"
CONFIG_FILE = "config.json"
LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
PLAIN = ("W_enc", "W_dec", "b_enc", "b_dec")


SAVED: dict[str, tuple[set[str], set[str]]] = {
    "AutoEncoder": ({*LINEAR, "bias"}, set()),
    "AutoEncoderNew": ({*LINEAR, "decoder.bias"}, set()),
    "AutoEncoderTopK": ({*LINEAR, "b_dec"}, {"k", "threshold"}),
    "BatchTopKSAE": ({*LINEAR, "b_dec"}, {"k", "threshold"}),
    "MatryoshkaBatchTopKSAE": ({*PLAIN, "group_sizes"}, {"k", "threshold"}),
    "JumpReluAutoEncoder": ({*PLAIN, "threshold"}, set()),
    "GatedAutoEncoder": (
        {"encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"},
        set(),
    ),
}
"""The tensors that each class always saves, and those that only some of its versions save."""


@dataclass(frozen=True)
class Stored:
    """One file's weights, the `trainer` part of its configuration, and the class that wrote it."""

    weights: NamedTensors
    trainer: Record
    source: str


@dataclass(frozen=True)
class FiringRule:
    """Which latents fire: those above a threshold or the k largest; and BatchTopK's training k."""

    threshold: Float[Tensor, " d_sae"] | None = None
    k: int | None = None
    batch_k: int | None = None
    note: str = ""


def read_dictionary_learning(path: Path) -> ForeignSAE:
    """The SAE in `path`: the directory of `ae.pt`, or a `.pt` file with config.json near it.

    Codes are those of the library's `load_dictionary(...)`, with one exception: a BatchTopK SAE
    whose threshold was never set is read as top-k, where the library would keep every positive
    pre-activation.

    Raises:
        UsageError: a file is missing, damaged or contradicts the other, or the class is unknown.
    """
    path = path / WEIGHTS_FILE if path.is_dir() else path
    weights, config = load_pt(path), _config_of(path)
    told = config.exists()
    trainer = load_json(config).record("trainer") if told else Record(config, {})
    kind = (trainer.text("dict_class") or "missing") if told else _kind_by_tensors(weights, config)
    if kind not in READERS:
        raise UsageError(
            f"{trainer.path}: trainer.dict_class is {kind[:40]!r}, "
            f"but it must be one of {', '.join(READERS)}."
        )
    sae = READERS[kind](Stored(weights, trainer, f"dictionary_learning {kind}"))
    for key, width in (("activation_dim", sae.d_in), ("dict_size", sae.d_sae)):
        stated = trainer.integer(key)
        if stated not in (None, width):
            raise UsageError(f"{trainer.path}: {key} is {stated}, but the encoder has {width}.")
    return replace(sae, model=trainer.text("lm_name"), hook=_hook(trainer))


def _kind_by_tensors(weights: NamedTensors, config: Path) -> str:
    """The class of a file without config.json, judged by its tensors; old releases wrote none."""
    found = set(weights.tensors)
    kinds = [kind for kind, (needed, more) in SAVED.items() if needed <= found <= needed | more]
    # A BatchTopK SAE whose threshold was never set is read as top-k too.
    if len(kinds) == 1 or (kinds and weights.scalar_or("threshold", -1.0) < 0):
        return kinds[0]
    remedy = f"put its {CONFIG_FILE} at {config}, or one that says trainer.dict_class"
    if kinds:
        raise UsageError(
            f"{weights.path} may be of the class {' or '.join(kinds)}, which save the same tensors "
            f"and encode differently; {remedy}."
        )
    raise UsageError(
        f"{weights.path} holds {', '.join(sorted(found))[:120]}, which no class of "
        f"dictionary_learning saves; {remedy}."
    )


def _config_of(path: Path) -> Path:
    """config.json lies beside `ae.pt`, or one level above the files in `checkpoints/`."""
    near = path.parent / CONFIG_FILE
    is_checkpoint = path.parent.name == "checkpoints" and not near.exists()
    return path.parent.parent / CONFIG_FILE if is_checkpoint else near


def _hook(trainer: Record) -> str | None:
    """The hook of the residual stream after a layer; None for any other name."""
    found = re.fullmatch(r"resid_post_layer_(\d+)", trainer.text("submodule_name") or "")
    return f"blocks.{found[1]}.hook_resid_post" if found else None


def _relu(stored: Stored) -> ForeignSAE:
    """AutoEncoder: subtracts its bias; its loader makes atoms unit vectors."""
    _check_names(stored, "AutoEncoder")
    return _transposed(stored, _above_zero(stored), b_dec="bias").with_norms_in_codes()


def _relu_new(stored: Stored) -> ForeignSAE:
    """AutoEncoderNew: neither subtracts a bias nor normalises."""
    _check_names(stored, "AutoEncoderNew")
    return _transposed(stored, _above_zero(stored), b_dec="decoder.bias", subtract_b_dec=False)


def _top_k(stored: Stored) -> ForeignSAE:
    """AutoEncoderTopK: it also stores a threshold, which its `encode` does not use."""
    _check_names(stored, "AutoEncoderTopK")
    return _transposed(stored, FiringRule(k=_k(stored)), b_dec="b_dec")


def _batch_top_k(stored: Stored) -> ForeignSAE:
    """BatchTopKSAE: one threshold for all latents."""
    _check_names(stored, "BatchTopKSAE")
    d_sae = len(stored.weights.matrix("encoder.weight"))
    return _transposed(stored, _one_threshold(stored, d_sae), b_dec="b_dec")


def _matryoshka(stored: Stored) -> ForeignSAE:
    """MatryoshkaBatchTopKSAE: as BatchTopKSAE, with latents in ordered groups."""
    _check_names(stored, "MatryoshkaBatchTopKSAE")
    d_sae = stored.weights.matrix("W_enc").shape[1]
    sae = _as_stored(stored, _one_threshold(stored, d_sae), subtract_b_dec=True)
    return replace(sae, prefixes=tuple(accumulate(stored.weights.integers("group_sizes"))))


def _jumprelu(stored: Stored) -> ForeignSAE:
    """JumpReluAutoEncoder: a threshold per latent; does not subtract b_dec."""
    _check_names(stored, "JumpReluAutoEncoder")
    threshold = stored.weights.vector("threshold").clamp_min(0)
    return _as_stored(stored, FiringRule(threshold=threshold), subtract_b_dec=False)


def _gated(stored: Stored) -> ForeignSAE:
    """GatedAutoEncoder: subtracts its decoder bias."""
    _check_names(stored, "GatedAutoEncoder")
    weights = stored.weights
    return ForeignSAE(
        W_enc=weights.matrix("encoder.weight").T,
        W_dec=weights.matrix("decoder.weight").T,
        b_enc=weights.vector("mag_bias"),
        b_dec=weights.vector("decoder_bias"),
        gate=Gate(weights.vector("r_mag"), weights.vector("gate_bias")),
        subtract_b_dec=True,
        source=stored.source,
    )


READERS: dict[str, Callable[[Stored], ForeignSAE]] = {
    "AutoEncoder": _relu,
    "AutoEncoderNew": _relu_new,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
    "GatedAutoEncoder": _gated,
}
"""The reader of each class, by the name in config.json."""


def _check_names(stored: Stored, kind: str) -> None:
    stored.weights.check_names(*SAVED[kind])


def _transposed(
    stored: Stored, selection: FiringRule, *, b_dec: str, subtract_b_dec: bool = True
) -> ForeignSAE:
    return ForeignSAE(
        W_enc=stored.weights.matrix("encoder.weight").T,
        W_dec=stored.weights.matrix("decoder.weight").T,
        b_enc=stored.weights.vector("encoder.bias"),
        b_dec=stored.weights.vector(b_dec),
        threshold=selection.threshold,
        k=selection.k,
        batch_k=selection.batch_k,
        subtract_b_dec=subtract_b_dec,
        source=stored.source + selection.note,
    )


def _as_stored(stored: Stored, selection: FiringRule, *, subtract_b_dec: bool) -> ForeignSAE:
    return ForeignSAE(
        W_enc=stored.weights.matrix("W_enc"),
        W_dec=stored.weights.matrix("W_dec"),
        b_enc=stored.weights.vector("b_enc"),
        b_dec=stored.weights.vector("b_dec"),
        threshold=selection.threshold,
        k=selection.k,
        batch_k=selection.batch_k,
        subtract_b_dec=subtract_b_dec,
        source=stored.source + selection.note,
    )


def _above_zero(stored: Stored) -> FiringRule:
    return FiringRule(threshold=torch.zeros(len(stored.weights.matrix("encoder.weight"))))


def _one_threshold(stored: Stored, d_sae: int) -> FiringRule:
    """The running threshold. It starts at -1 and stays there if the training was too short."""
    value = stored.weights.scalar_or("threshold", -1.0)
    k = _k(stored)
    if value < 0:
        return FiringRule(k=k, note=" (threshold never set: read as top-k)")
    return FiringRule(threshold=torch.full((d_sae,), value), batch_k=k)


def _k(stored: Stored) -> int:
    stated = stored.trainer.integer("k")
    if "k" not in stored.weights.tensors:
        if stated is None:
            raise UsageError(f"{stored.trainer.path} has no trainer.k, nor has the state dict.")
        return stated
    k = stored.weights.integers("k")
    if len(k) != 1 or stated not in (None, k[0]):
        raise UsageError(f"{stored.trainer.path}: k is {stated}, but the state dict has {k}.")
    return k[0]

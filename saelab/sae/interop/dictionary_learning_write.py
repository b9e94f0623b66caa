"""Writing an SAE in the form that dictionary_learning's `load_dictionary` reads."""

import io
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from saelab.config import UsageError
from saelab.files import json_bytes
from saelab.sae.interop.dictionary_learning import CONFIG_FILE, WEIGHTS_FILE
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.write import write_new
from saelab.sites import Site


def write_dictionary_learning(foreign: ForeignSAE, directory: Path) -> None:
    """Save `foreign` as `ae.pt` and `config.json` in a new directory.

    The class is GatedAutoEncoder if there is a gate, AutoEncoderTopK if there is k, AutoEncoderNew
    if every threshold is zero, BatchTopKSAE or MatryoshkaBatchTopKSAE if batch-level training left
    one threshold for all latents, else JumpReluAutoEncoder.

    Raises:
        UsageError: `directory` already holds another SAE or cannot be written to, or no class has
            these codes.
    """
    unknown = {
        "transcoders": foreign.transcoder,
        "SAEs with signed codes": foreign.signed,
        "SAEs of normalised rows": foreign.row_norm is not None,
        "matching pursuit": foreign.steps is not None,
    }
    if kind := next((name for name, has in unknown.items() if has), None):
        raise UsageError(f"dictionary_learning has no {kind}; export to SAELens.")
    kind, tensors = _stored(foreign)
    packed = io.BytesIO()
    torch.save({name: _whole(tensor) for name, tensor in tensors.items()}, packed)
    trainer: dict[str, object] = {"dict_class": kind, "lm_name": foreign.model}
    trainer |= {"activation_dim": foreign.d_in, "dict_size": foreign.d_sae}
    if "k" in tensors:
        trainer["k"] = int(tensors["k"])
    site = Site.find(foreign.hook or "")
    if site is not None and site.layer is not None and site.part == "hook_resid_post":
        trainer |= {"layer": site.layer, "submodule_name": f"resid_post_layer_{site.layer}"}
    files = {WEIGHTS_FILE: packed.getvalue(), CONFIG_FILE: json_bytes({"trainer": trainer})}
    write_new(directory, files)


def _stored(foreign: ForeignSAE) -> tuple[str, dict[str, Tensor]]:
    """The class, and its state dict."""
    threshold, k = foreign.threshold, foreign.batch_k
    if foreign.gate is not None:
        centred = foreign.reading(less_b_dec=True)
        linear = _linear(centred)
        assert centred.gate is not None
        return "GatedAutoEncoder", {
            "encoder.weight": linear["encoder.weight"],
            "decoder.weight": linear["decoder.weight"],
            "decoder_bias": centred.b_dec,
            "r_mag": centred.gate.r_mag,
            "gate_bias": centred.gate.b_gate,
            "mag_bias": centred.b_enc,
        }
    if threshold is None:
        centred = foreign.reading(less_b_dec=True)
        never = {"k": torch.tensor(foreign.k), "threshold": torch.tensor(-1.0)}
        return "AutoEncoderTopK", _linear(centred) | {"b_dec": centred.b_dec} | never
    if foreign.has_one_threshold and k is not None and k == int(k):
        learned = {"b_dec": foreign.b_dec, "k": torch.tensor(int(k)), "threshold": threshold[0]}
        if foreign.prefixes is None:
            return "BatchTopKSAE", _linear(foreign) | learned
        sizes = [b - a for a, b in pairwise((0, *foreign.prefixes))]
        more = {"group_sizes": torch.tensor(sizes)}
        return "MatryoshkaBatchTopKSAE", _plain(foreign) | learned | more
    plain = foreign.reading(less_b_dec=False)
    if not threshold.any():
        return "AutoEncoderNew", _linear(plain) | {"decoder.bias": plain.b_dec}
    return "JumpReluAutoEncoder", _plain(plain) | {"threshold": threshold}


def _linear(foreign: ForeignSAE) -> dict[str, Tensor]:
    return {
        "encoder.weight": foreign.W_enc.T,
        "encoder.bias": foreign.b_enc,
        "decoder.weight": foreign.W_dec.T,
    }


def _plain(foreign: ForeignSAE) -> dict[str, Tensor]:
    return {name: getattr(foreign, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}


def _whole(tensor: Tensor) -> Tensor:
    """In one piece; as float32, since not every version of the tool reads 16 bits."""
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()

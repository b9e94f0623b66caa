"""Released `.pt` and `.pth` files: state dicts without a configuration, told apart by tensors.

* OpenAI (openai/sparse_autoencoder): `pre_bias` and `latent_bias` beside bias-free matrices; the
  dict also states the activation. TopK goes with a layer norm of each row.
* Goodfire: `encoder_linear`, `decoder_linear`; ReLU, and the encoder does not subtract the bias.
* Qwen-Scope: `W_enc` [d_sae d_in] and `W_dec` [d_in d_sae], the transposes of saelab's; TopK of
  x @ W_enc^T + b_enc, which does not subtract b_dec. k stands only in the repository's name.
* The attention SAEs of GPT-2 small (Kissane and others): the same names, not transposed; ReLU of
  (x - b_dec) @ W_enc + b_enc. A file `..._cfg.json` beside it names the hook.

Any other state dict is read as dictionary_learning's.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from saelab.config import UsageError
from saelab.sae.interop.contents import NamedTensors, Record
from saelab.sae.interop.dictionary_learning import read_dictionary_learning
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.hints import Hints
from saelab.sae.interop.restricted import load_json, load_pt_stating

OPENAI = {"pre_bias", "latent_bias", "encoder.weight", "decoder.weight"}
COUNTS = {"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"}
GOODFIRE = {
    f"{side}_linear.{part}" for side in ("encoder", "decoder") for part in ("weight", "bias")
}
PLAIN = {"W_enc", "W_dec", "b_enc", "b_dec"}
QWEN_REPOSITORY = re.compile(r"SAE-Res-(.+)-W(\d{1,6})K-L0_(\d{1,6})$")
"""The name of a Qwen-Scope repository, or of its folder in a hub cache."""
QWEN_FILE = re.compile(r"layer(\d{1,4})\.sae\.pt")
Reader = Callable[[Path, dict[str, Tensor], Hints], ForeignSAE]
GOODFIRE_FILE = re.compile(r"(.+)-SAE-l(\d{1,4})\.pth?")


def read_state_dict(path: Path, hints: Hints) -> ForeignSAE:
    """The SAE in the `.pt` file `path`.

    Raises:
        UsageError: it is damaged, holds anything but plain tensors and statements, or is of no
            known kind; or k is needed and not known.
    """
    weights, stated = load_pt_stating(path)
    found = weights.tensors.keys()
    if found >= OPENAI:
        return _openai(weights, stated)
    if found >= GOODFIRE:
        return _goodfire(weights)
    if found == PLAIN:
        return _plain(weights, hints)
    return read_dictionary_learning(path)


def _openai(weights: NamedTensors, stated: Record) -> ForeignSAE:
    weights.check_names(OPENAI, COUNTS)
    W_enc = weights.matrix("encoder.weight").T
    rule = stated.record("activation_state_dict")
    activation, after = stated.text("activation") or "ReLU", rule.text("postact_fn") or "ReLU"
    if activation not in ("ReLU", "TopK") or after != "ReLU":
        raise UsageError(
            f"{weights.path}: the activation is {activation[:40]!r} with {after[:40]!r}, which has "
            "no counterpart; ReLU and TopK with ReLU have."
        )
    top_k = activation == "TopK"
    if top_k and rule.integer("k") is None:
        raise UsageError(f"{weights.path} has no activation_state_dict.k, which a TopK SAE needs.")
    return ForeignSAE(
        W_enc=W_enc,
        W_dec=weights.matrix("decoder.weight").T,
        b_enc=weights.vector("latent_bias"),
        b_dec=weights.vector("pre_bias"),
        k=rule.integer("k") if top_k else None,
        threshold=None if top_k else torch.zeros(W_enc.shape[1]),
        subtract_b_dec=True,
        # In OpenAI's code as well, the activation is what says that rows were normalised.
        row_norm="layer-norm" if top_k else None,
        source=f"OpenAI {activation}",
    )


def _goodfire(weights: NamedTensors) -> ForeignSAE:
    weights.check_names(GOODFIRE)
    W_enc = weights.matrix("encoder_linear.weight").T
    name = GOODFIRE_FILE.fullmatch(weights.path.name)
    return ForeignSAE(
        W_enc=W_enc,
        W_dec=weights.matrix("decoder_linear.weight").T,
        b_enc=weights.vector("encoder_linear.bias"),
        b_dec=weights.vector("decoder_linear.bias"),
        threshold=torch.zeros(W_enc.shape[1]),
        subtract_b_dec=False,
        hook=None if name is None else f"blocks.{int(name[2])}.hook_resid_post",
        model=None if name is None else name[1],
        source="Goodfire relu",
    )


def _plain(weights: NamedTensors, hints: Hints) -> ForeignSAE:
    """Four tensors of the same names in two orientations, which the biases tell apart."""
    tensors = {name: weights.matrix(name) for name in ("W_enc", "W_dec")}
    tensors |= {name: weights.vector(name) for name in ("b_enc", "b_dec")}
    shape = tensors["W_enc"].shape[0], tensors["W_enc"].shape[1]
    widths = len(tensors["b_dec"]), len(tensors["b_enc"])
    if shape == widths and shape[0] == shape[1]:
        raise UsageError(
            f"{weights.path} has as many latents as inputs ({shape[0]}), so nothing says whether "
            "its matrices are transposed."
        )
    readers: dict[tuple[int, int], Reader] = {
        widths: _attention_of_gpt2,
        (widths[1], widths[0]): _qwen_scope,
    }
    if (reader := readers.get(shape)) is None:
        raise UsageError(
            f"{weights.path}: W_enc has shape {list(shape)}, but its biases have {widths[1]} "
            f"latents and {widths[0]} inputs."
        )
    return reader(weights.path, tensors, hints)


def _qwen_scope(path: Path, tensors: dict[str, Tensor], hints: Hints) -> ForeignSAE:
    names = [found for part in path.absolute().parts if (found := QWEN_REPOSITORY.search(part))]
    file = QWEN_FILE.fullmatch(path.name)
    if names and int(names[-1][2]) * 1024 != len(tensors["b_enc"]):
        raise UsageError(
            f"{path}: the repository's name says {names[-1][2]}K latents, but W_enc has "
            f"{len(tensors['b_enc'])}."
        )
    return ForeignSAE(
        W_enc=tensors["W_enc"].T,
        W_dec=tensors["W_dec"].T,
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        k=hints.with_k(path, int(names[-1][3]) if names else None),
        subtract_b_dec=False,
        hook=None if file is None else f"blocks.{int(file[1])}.hook_resid_post",
        model=f"Qwen/{names[-1][1]}" if names else None,
        source="Qwen-Scope topk",
    )


def _attention_of_gpt2(path: Path, tensors: dict[str, Tensor], hints: Hints) -> ForeignSAE:
    if hints.k is not None:
        raise UsageError(f"{path} keeps the latents above zero; leave out --k.")
    beside = path.with_name(f"{path.stem}_cfg.json")
    sae = ForeignSAE(
        W_enc=tensors["W_enc"],
        W_dec=tensors["W_dec"],
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        threshold=torch.zeros(len(tensors["b_enc"])),
        subtract_b_dec=True,
        source="Kissane et al. relu",
    )
    if not beside.is_file():
        return sae
    # "blocks.0.hook_z" is the older name of the hook.
    name = load_json(beside).text("act_name")
    hook = None if name is None else re.sub(r"(blocks\.\d+)\.hook_z", r"\1.attn.hook_z", name)
    return replace(sae, hook=hook)

"""Gemma Scope 2: cross-layer transcoders and crosscoders, one `params_layer_N.safetensors` a layer.

    w_enc [d latent], b_enc, threshold [latent]   what reads layer N, and what fires
    w_dec [latent n d], b_dec [d]                 what its latents write to each of the n layers
    affine_skip_connection [d d]                  of an affine one: x_N @ it is added at layer N

N counts the layers that are read, from 0; config.json beside the files names them, as
`model.layers.{all}.pre_feedforward_layernorm.output` or `model.layers.{5,9,12,15}.output`. A latent
of JumpReLU reads x_N @ w_enc + b_enc, without b_dec. A cross-layer transcoder writes to its own and
later layers; a crosscoder reads and writes the same sites, and may write to all of them.
"""

import re
from pathlib import Path

from torch import Tensor

from saelab.config import UsageError, shortened
from saelab.formats.mapped import all_finite
from saelab.sae.interop.circuit_tracer_clt import CLTLayer, ForeignCLT
from saelab.sae.interop.contents import NamedTensors
from saelab.sae.interop.gemma_scope import MODULES
from saelab.sae.interop.restricted import load_json, load_safetensors

FILE = re.compile(r"params_layer_(0|[1-9][0-9]{0,3})\.safetensors")
CONFIG_FILE = "config.json"
NEEDED = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}
SKIP = "affine_skip_connection"
LAYERS = re.compile(r"\{(all|\d{1,4}(?:,\d{1,4})*)\}")


def holds_params_of_layers(path: Path) -> bool:
    """Whether a directory has files of several layers."""
    return path.is_dir() and any(FILE.fullmatch(file.name) for file in path.iterdir())


def read_params_of_layers(directory: Path) -> ForeignCLT:
    """The cross-layer transcoder or crosscoder in a directory; tensors stay as they are stored.

    Raises:
        UsageError: a file is missing or damaged, shapes do not fit, config.json does not name the
            hooks, or the layers have affine skip connections.
    """
    if not holds_params_of_layers(directory):
        raise UsageError(f"{directory} holds no params_layer_0.safetensors, ...; copy them again.")
    found = [FILE.fullmatch(file.name) for file in directory.iterdir()]
    n = 1 + max(int(name[1]) for name in found if name is not None)
    config = load_json(directory / CONFIG_FILE)
    if (architecture := config.text("architecture")) not in (None, "jump_relu"):
        raise UsageError(
            f"{config.path}: the architecture is {shortened(architecture)}, not 'jump_relu'."
        )
    reads, writes = (
        _hooks(config.text(f"hf_hook_point_{end}"), n, config.path) for end in ("in", "out")
    )
    same = reads == writes
    layers = tuple(_layer(directory, number, n, every=same) for number in range(n))
    if len({tuple(layer.W_enc.shape) for layer in layers}) > 1:
        raise UsageError(f"The layers in {directory} differ in width or number of latents.")
    kind = "crosscoder" if same else "cross-layer transcoder"
    return ForeignCLT(layers, reads, writes, config.text("model_name"), f"Gemma Scope 2 {kind}")


def _hooks(modules: str | None, n: int, path: Path) -> str:
    """The joint site of these modules, such as blocks.5.hook_resid_post+blocks.9..."""
    found = LAYERS.search(modules or "")
    for pattern, part in MODULES.items():
        if modules is None or found is None:
            break
        if not re.fullmatch(pattern, LAYERS.sub("0", modules)):
            continue
        layers = range(n) if found[1] == "all" else [int(layer) for layer in found[1].split(",")]
        if len(layers) != n or sorted(set(layers)) != list(layers):
            raise UsageError(f"{path} names the layers {found[1][:60]}, and there are {n} files.")
        return "+".join(f"blocks.{layer}.{part}" for layer in layers)
    raise UsageError(
        f"{path} names the modules {shortened(modules)}, which are no layers that are known here."
    )


def _layer(directory: Path, number: int, n: int, *, every: bool) -> CLTLayer:
    """One layer; `every`: its latents may write to earlier layers too."""
    file = load_safetensors(directory / f"params_layer_{number}.safetensors")
    if SKIP in file.tensors:
        raise UsageError(
            f"{file.path} has an affine skip connection, which a cross-layer transcoder has no "
            "place for here; import the one without."
        )
    file.check_names(NEEDED)
    W_enc = file.matrix("w_enc")
    d, m = W_enc.shape
    b_enc, threshold = file.vector("b_enc", m), file.vector("threshold", m).clamp_min(0)
    b_dec, W_dec = file.vector("b_dec", d), _decoder(file, (m, n, d))
    for name, tensor in {"w_enc": W_enc, "w_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}.items():
        if not all_finite(tensor):
            raise UsageError(f"{file.path}: {name} holds NaN or infinite values.")
    if not all_finite(threshold):
        raise UsageError(f"{file.path}: threshold holds NaN or infinite values.")
    return CLTLayer(W_enc.T, b_enc, b_dec, threshold, W_dec if every else W_dec[:, number:])


def _decoder(file: NamedTensors, shape: tuple[int, int, int]) -> Tensor:
    tensor = file.tensors["w_dec"]
    if tuple(tensor.shape) != shape or not tensor.dtype.is_floating_point:
        raise UsageError(
            f"{file.path}: w_dec is {tensor.dtype} of shape {list(tensor.shape)}, and floats of "
            f"{list(shape)} fit w_enc and the files."
        )
    return tensor

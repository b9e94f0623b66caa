"""circuit-tracer: a directory with `config.yaml` and a cross-layer transcoder, two files a layer.

W_enc_0.safetensors, ...  W_enc_0 [latent d], b_enc_0 [latent], b_dec_0 [d], maybe threshold_0
W_dec_0.safetensors, ...  W_dec_0 [latent n-0 d]: to layer 0, 1, ... of n

Latents are rectified, or jump at `threshold_0`. `config.yaml` names the hooks after `blocks.N.`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError, shortened
from saelab.sae.base import AbstractSAE
from saelab.sae.interop.circuit_tracer import (
    CONFIG_FILE,
    READS,
    WRITES,
    circuit_tracer_config,
    read_settings,
)
from saelab.sae.interop.restricted import NamedTensors, load_safetensors
from saelab.sae.interop.write import write_new
from saelab.sae.transcoder import make_transcoder
from saelab.sae.variants import SAE_CONFIG
from saelab.sites import Site, parts_of

KIND = "cross_layer_transcoder"
FILE = re.compile(r"W_(?:enc|dec)_(0|[1-9][0-9]{0,3})\.safetensors")
K = 32
"""What the imported SAE's options say of a target L0, which no file of this tool tells."""


@dataclass(frozen=True)
class CLTLayer:
    """One layer, which reads and writes activations as the model has them.

    Attributes:
        b_dec: of its own target.
        threshold: zeros for rectified latents.
        W_dec: to its own layer and all later ones; of a crosscoder to all.
    """

    W_enc: Float[Tensor, "latent d"]
    b_enc: Float[Tensor, " latent"]
    b_dec: Float[Tensor, " d"]
    threshold: Float[Tensor, " latent"]
    W_dec: Float[Tensor, "latent target d"]


@dataclass(frozen=True)
class ForeignCLT:
    """A cross-layer transcoder of all layers, with the hooks that it reads and writes.

    If these are the same, it is a crosscoder whose latents each read one layer.
    """

    layers: tuple[CLTLayer, ...]
    reads: str
    writes: str
    model: str | None = None
    source: str = "circuit-tracer"

    @property
    def crosscoder(self) -> bool:
        """Whether it reconstructs what it reads."""
        return self.reads == self.writes

    @property
    def n_bytes(self) -> int:
        """Bytes of its weights here, in float32."""
        n, (m, d) = len(self.layers), self.layers[0].W_enc.shape
        return 4 * n * m * d * (n + 1)


def holds_clt(path: Path) -> bool:
    """Whether a directory is a cross-layer transcoder's."""
    return path.is_dir() and any(FILE.fullmatch(file.name) for file in path.iterdir())


def read_clt(directory: Path) -> ForeignCLT:
    """The cross-layer transcoder in a directory.

    Raises:
        UsageError: a file is missing or damaged, its shapes do not fit, or config.yaml does not
            name the hooks.
    """
    settings = read_settings(directory / CONFIG_FILE)
    if (kind := settings.get("model_kind", KIND)) != KIND:
        raise UsageError(f"{directory / CONFIG_FILE} says {shortened(kind)}, not {KIND}.")
    parts = [settings.get(f"feature_{end}_hook") for end in ("input", "output")]
    if parts[0] is None or parts[1] is None:
        raise UsageError(
            f"{directory / CONFIG_FILE} does not say feature_input_hook and feature_output_hook; "
            "write both, e.g. mlp.hook_in and hook_mlp_out."
        )
    found = [FILE.fullmatch(file.name) for file in directory.iterdir()]
    n = 1 + max((int(name[1]) for name in found if name is not None), default=0)
    layers = tuple(_layer(directory, layer, n) for layer in range(n))
    if len({tuple(layer.W_enc.shape) for layer in layers}) > 1:
        raise UsageError(f"The layers in {directory} differ in width or number of latents.")
    reads, writes = ("+".join(f"blocks.{layer}.{part}" for layer in range(n)) for part in parts)
    return ForeignCLT(layers, reads, writes, settings.get("model_name"))


def _layer(directory: Path, layer: int, n: int) -> CLTLayer:
    names = [f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec", "threshold", "W_dec")]
    encoder = load_safetensors(directory / f"W_enc_{layer}.safetensors")
    encoder.check_names(set(names[:3]), {names[3]})
    decoder = load_safetensors(directory / f"W_dec_{layer}.safetensors")
    decoder.check_names({names[4]}, set())
    W_enc = encoder.matrix(names[0]).float()
    m, d = W_enc.shape
    b_enc, b_dec = encoder.vector(names[1], m), encoder.vector(names[2], d)
    threshold = b_enc.new_zeros(m)
    if names[3] in encoder.tensors:
        threshold = encoder.vector(names[3], m)
    W_dec = _decoder(decoder, names[4], (m, n - layer, d))
    for file in (encoder, decoder):
        for name, tensor in file.tensors.items():
            if not bool(tensor.isfinite().all()):
                raise UsageError(f"{file.path}: {name} holds NaN or infinite values.")
    if bool((threshold < 0).any()):
        raise UsageError(f"{encoder.path}: a threshold is {float(threshold.min()):g}, below 0.")
    return CLTLayer(W_enc, b_enc, b_dec, threshold, W_dec)


def _decoder(file: NamedTensors, name: str, shape: tuple[int, int, int]) -> Tensor:
    tensor = file.tensors[name].float()
    if tuple(tensor.shape) != shape:
        raise UsageError(
            f"{file.path}: {name} has shape {list(tensor.shape)}, and {list(shape)} fits W_enc."
        )
    return tensor


@torch.no_grad()
def from_foreign_clt(foreign: ForeignCLT) -> AbstractSAE:
    """The variant `clt` with the same codes and reconstructions, on the CPU in float32."""
    layers, n = foreign.layers, len(foreign.layers)
    m, d = layers[0].W_enc.shape
    options = {"variant": "clt", "selection": "jumprelu", "d_sae": n * m, "widths": (d,) * n}
    config = SAE_CONFIG.validate_python(options | {"k": min(K, n * m)})
    with torch.device("meta"):
        sae = config.build(n * d)
        if not foreign.crosscoder:
            make_transcoder(sae, n * d)
    W_dec, W_enc = torch.zeros(n, m, n, d), torch.empty(d, n, m)
    for number, layer in enumerate(layers):
        W_dec[number, :, n - layer.W_dec.shape[1] :] = layer.W_dec
        W_enc[:, number] = layer.W_enc.T
    names = ("b_enc", "b_dec", "threshold")
    vectors = {name: torch.cat([getattr(layer, name) for layer in layers]) for name in names}
    if foreign.crosscoder:
        # Here the encoder subtracts b_dec from what it reads.
        shifts = [W_enc[:, i].T @ layer.b_dec for i, layer in enumerate(layers)]
        vectors["b_enc"] += torch.cat(shifts)
    else:
        vectors["b_in"] = torch.zeros(n * d)
    matrices = {"W_enc": W_enc.view(d, n * m), "W_dec": W_dec.view(n * m, n * d)}
    sae.load_state_dict(matrices | vectors, assign=True)
    return sae.eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def to_foreign_clt(
    sae: AbstractSAE,
    sites: tuple[str, str],
    factors: tuple[Sequence[float], Sequence[float]],
    model: str | None = None,
) -> ForeignCLT:
    """A cross-layer transcoder's weights in the model's own scale.

    Args:
        sae: the SAE.
        sites: the joint sites that it reads and writes.
        factors: by which training multiplied each site's activations, of either.
        model: the language model's name.

    Raises:
        UsageError: it is no cross-layer transcoder with thresholds.
    """
    parts = sae.transcoders()
    if not parts or any(part.own.threshold is None for part in parts):
        raise UsageError(
            "circuit-tracer has only cross-layer transcoders whose latents have thresholds: "
            "those of selection batch-topk and jumprelu can be exported."
        )
    layers = []
    for number, part in enumerate(parts):
        own, read = part.own, factors[0][number]
        rows = [own.W_dec, *(rows.detach().cpu().float() for rows in part.later)]
        scaled = [r / f for r, f in zip(rows, factors[1][number:], strict=True)]
        b_enc = own.b_enc - part.centre.cpu().float() @ own.W_enc
        assert own.threshold is not None
        layers.append(
            CLTLayer(
                (own.W_enc * read).T.contiguous(), b_enc, own.b_dec / factors[1][number],
                own.threshold.clone(), torch.stack(scaled, dim=1),
            )
        )  # fmt: skip
    return ForeignCLT(tuple(layers), *sites, model)


def write_clt(foreign: ForeignCLT, directory: Path) -> None:
    """Save a cross-layer transcoder as circuit-tracer's `load_clt` reads it.

    Raises:
        UsageError: its sites are not those of the MLPs of layers 0, 1, ..., or `directory` holds
            another SAE.
    """
    read, written = (_common_part(sites) for sites in (foreign.reads, foreign.writes))
    if read not in READS or written not in WRITES:
        raise UsageError(
            f"circuit-tracer takes cross-layer transcoders of all MLPs, from {' or '.join(READS)} "
            f"to {' or '.join(WRITES)} of layers 0, 1, ...; this one reads "
            f"{shortened(foreign.reads)} and writes {shortened(foreign.writes)}."
        )
    config = circuit_tracer_config(foreign.model, KIND, READS[read], written)
    files: dict[str, bytes | dict[str, Tensor]] = {CONFIG_FILE: config}
    for number, layer in enumerate(foreign.layers):
        tensors = {
            f"W_enc_{number}": layer.W_enc,
            f"b_enc_{number}": layer.b_enc,
            f"b_dec_{number}": layer.b_dec,
            f"threshold_{number}": layer.threshold,
        }
        files[f"W_enc_{number}.safetensors"] = tensors
        files[f"W_dec_{number}.safetensors"] = {f"W_dec_{number}": layer.W_dec}
    write_new(directory, files)


def _common_part(sites: str) -> str | None:
    """What all hooks of a joint site are after `blocks.N.`, with N from 0 on; None if not."""
    found = [Site.find(hook) for hook in parts_of(sites)]
    parts = {site.part for site in found if site is not None}
    layers = [site.layer for site in found if site is not None]
    return parts.pop() if len(parts) == 1 and layers == list(range(len(found))) else None

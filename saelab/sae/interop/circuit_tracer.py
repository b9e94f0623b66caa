"""circuit-tracer: a directory with `config.yaml` and `layer_0.safetensors`, ... of transcoders.

W_enc is [d_sae d_in], the transpose of saelab's; W_dec is [d_sae d_out]. Latents are rectified, or
jump at `activation_function.threshold`. A skip connection is x @ W_skip^T. `config.yaml` names the
hooks after `blocks.N.`: circuit-tracer's `mlp.hook_in` is what the MLP reads, past the norm.

Cross-layer transcoders (`W_enc_0.safetensors`, ...) are in circuit_tracer_clt.py.
"""

import os
import re
from pathlib import Path

import yaml

from saelab.config import UsageError
from saelab.formats.regular import read_regular, utf8
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.restricted import load_safetensors
from saelab.sae.interop.write import write_new
from saelab.sites import Site

CONFIG_FILE = "config.yaml"
LAYER_FILE = re.compile(r"layer_(\d{1,4})\.safetensors")
THRESHOLD = "activation_function.threshold"
READS = {"mlp.hook_in": "mlp.hook_in", "ln2.hook_out": "mlp.hook_in"}
"""circuit-tracer's name of what a transcoder reads, by saelab's."""
WRITES = ("hook_mlp_out", "mlp.hook_out")
MAX_CONFIG = 2**20
NOTE = "circuit-tracer takes no latents at the first position; saelab takes them where a run says."
_TEXT = "tag:yaml.org,2002:str"


def read_circuit_tracer(path: Path) -> ForeignSAE:
    """The transcoder in `layer_N.safetensors`, or in a directory that has a single one.

    Raises:
        UsageError: a file is missing or damaged, or the directory has several layers or a
            cross-layer transcoder.
    """
    file = _only_layer(path) if path.is_dir() else path
    named = LAYER_FILE.fullmatch(file.name)
    assert named is not None, "detect.py asks for the name"
    settings = read_settings(file.parent / CONFIG_FILE)
    weights = load_safetensors(file)
    weights.check_names({"W_enc", "W_dec", "b_enc", "b_dec"}, {"W_skip", THRESHOLD})
    W_enc = weights.matrix("W_enc").T
    b_enc = weights.vector("b_enc", W_enc.shape[1])
    jumps = THRESHOLD in weights.tensors
    at = f"blocks.{int(named[1])}."
    read, written = (settings.get(f"feature_{end}_hook") for end in ("input", "output"))
    return ForeignSAE(
        W_enc=W_enc,
        W_dec=weights.matrix("W_dec"),
        b_enc=b_enc,
        b_dec=weights.vector("b_dec"),
        threshold=weights.vector(THRESHOLD, W_enc.shape[1])
        if jumps
        else b_enc.new_zeros(len(b_enc)),
        subtract_b_dec=False,
        transcoder=True,
        W_skip=weights.matrix("W_skip").T if "W_skip" in weights.tensors else None,
        hook=None if read is None else at + read,
        hook_out=None if written is None else at + written,
        model=settings.get("model_name"),
        source=f"circuit-tracer {'jumprelu' if jumps else 'relu'}",
        note=NOTE,
    )


def write_circuit_tracer(foreign: ForeignSAE, directory: Path) -> None:
    """Save a transcoder as one layer of a directory, beside other layers that are there already.

    Raises:
        UsageError: it is no transcoder of an MLP with thresholds, or `directory` holds another
            transcoder of this layer, or layers with other hooks.
    """
    site, written = (Site.find(name or "") for name in (foreign.hook, foreign.hook_out))
    read = None if site is None else READS.get(site.part)
    if site is None or site.layer is None or read is None or written is None:
        raise UsageError(
            f"circuit-tracer takes transcoders of an MLP, from {' or '.join(READS)} to "
            f"{' or '.join(WRITES)}; this SAE reads {foreign.hook} and writes "
            f"{foreign.hook_out or foreign.hook}."
        )
    if foreign.threshold is None or written.part not in WRITES:
        raise UsageError(
            "circuit-tracer has only transcoders whose latents have thresholds; those of "
            "BatchTopK, Matryoshka, JumpReLU and standard can be exported."
        )
    tensors = {
        "W_enc": foreign.W_enc.T,
        "W_dec": foreign.W_dec,
        "b_enc": foreign.b_enc,
        "b_dec": foreign.b_dec,
    }
    if foreign.threshold.any():
        tensors[THRESHOLD] = foreign.threshold
    if foreign.W_skip is not None:
        tensors["W_skip"] = foreign.W_skip.T
    config = circuit_tracer_config(foreign.model, "transcoder_set", read, written.part)
    write_new(directory, {CONFIG_FILE: config, f"layer_{site.layer}.safetensors": tensors})


def circuit_tracer_config(model: str | None, kind: str, read: str, written: str) -> bytes:
    """The content of config.yaml."""
    lines = {
        "model_name": None if model is None else f'"{model}"',
        "model_kind": kind,
        "feature_input_hook": read,
        "feature_output_hook": written,
    }
    return "".join(f"{n}: {value}\n" for n, value in lines.items() if value is not None).encode()


def has_layers(directory: Path) -> bool:
    """Whether a directory is circuit-tracer's, of transcoders or cross-layer transcoders."""
    config = directory / CONFIG_FILE
    return config.is_file() and any(directory.glob("*.safetensors"))


def _only_layer(directory: Path) -> Path:
    kind = read_settings(directory / CONFIG_FILE).get("model_kind", "transcoder_set")
    if kind != "transcoder_set":
        raise UsageError(
            f"{directory} holds a {kind[:40]}, which cannot be imported; a transcoder_set can."
        )
    found = sorted(file for file in directory.iterdir() if LAYER_FILE.fullmatch(file.name))
    if len(found) != 1:
        raise UsageError(
            f"{directory} holds {len(found)} layers; give the file of one, such as "
            f"{directory / 'layer_0.safetensors'}."
        )
    return found[0]


def read_settings(path: Path) -> dict[str, str]:
    """The top-level texts of config.yaml; none where there is no such file.

    Lists and nested values are left out: nothing here needs them.

    Raises:
        UsageError: it cannot be read, or is no YAML, or no mapping.
    """
    if not os.path.lexists(path):
        return {}
    try:
        # Nodes alone: making objects of them could take memory without limit ("<<").
        top = yaml.compose(utf8(read_regular(path, most=MAX_CONFIG), path), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        told = " ".join((getattr(error, "problem", None) or str(error)).split())
        raise UsageError(f"{path} is not valid YAML: {told[:200]}; copy it again.") from error
    if not isinstance(top, yaml.MappingNode):
        raise UsageError(f"{path} is no mapping of names to values; copy it again.")
    return {
        name.value: value.value
        for name, value in top.value
        if isinstance(value, yaml.ScalarNode) and value.tag == _TEXT and value.value
    }

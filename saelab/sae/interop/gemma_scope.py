"""Gemma Scope: JumpReLU SAEs in `params.npz` (Gemma 2) or `params.safetensors` (Gemma 3).

W_enc [d_in d_sae] and W_dec [d_sae d_in] are in saelab's layout, the encoder does not subtract
b_dec, and z = ReLU(a) where a > threshold (arXiv 2408.05147). The file does not name the model: the
published path does, and for Gemma 3 a config.json beside the file.

The embedding SAEs of Gemma 2 read embeddings before Gemma multiplies them by sqrt(d_in).
"""

import re
from pathlib import Path

from saelab.config import UsageError
from saelab.sae.interop.contents import NamedTensors, Record
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.restricted import load_json, load_npz, load_safetensors

NPZ_FILE = "params.npz"
SAFETENSORS_FILE = "params.safetensors"
NEEDED = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}

PUBLISHED = re.compile(r"(?:^|--)gemma-scope-[a-z0-9-]+$")
"""A published repository's folder, under its own name or in a Hugging Face cache."""
REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att)$")
OTHER_KINDS = re.compile(r"(transcoders?|clt|crosscoders?)(_[a-z]+)?")
"""Folders of the Gemma Scope 2 repositories that hold no SAEs."""
SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
MODULES = {
    r"model\.layers\.(\d+)\.output": "hook_resid_post",
    r"model\.layers\.(\d+)\.self_attn\.o_proj\.input": "attn.hook_z",
    r"model\.layers\.(\d+)\.post_feedforward_layernorm\.output": "hook_mlp_out",
}
"""The modules that Gemma 3's config.json names, as TransformerLens hooks."""


def read_gemma_scope(path: Path) -> ForeignSAE:
    """The SAE in `path`: a `.npz` or `.safetensors` file, or the directory of `params.*`.

    Raises:
        UsageError: there is no such file, it is damaged, or it is a transcoder.
    """
    if path.is_dir():
        path = path / (NPZ_FILE if (path / NPZ_FILE).exists() else SAFETENSORS_FILE)
    if _published_as_transcoder(path):
        raise UsageError(f"{path} is a transcoder: it predicts other activations than it reads.")
    weights = _weights(load_safetensors(path) if path.suffix == ".safetensors" else load_npz(path))
    model, hook = _place(path)
    W_enc = weights.matrix("W_enc")
    return ForeignSAE(
        W_enc=W_enc,
        W_dec=weights.matrix("W_dec"),
        b_enc=weights.vector("b_enc"),
        b_dec=weights.vector("b_dec"),
        threshold=weights.vector("threshold", W_enc.shape[1]).clamp_min(0),
        subtract_b_dec=False,
        hook=hook,
        model=model,
        source="Gemma Scope jumprelu",
    )


def _weights(stored: NamedTensors) -> NamedTensors:
    """The tensors under one spelling: some files say w_enc and w_dec."""
    tensors = {re.sub(r"^w_", "W_", name): tensor for name, tensor in stored.tensors.items()}
    if "affine_skip_connection" in tensors:
        raise UsageError(f"{stored.path} is a transcoder with a skip connection, not an SAE.")
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and bool((factor != 1).any()):
        raise UsageError(
            f"{stored.path} has a scaling factor other than 1, whose meaning is not documented."
        )
    weights = NamedTensors(stored.path, tensors)
    weights.check_names(NEEDED)
    return weights


def _place(path: Path) -> tuple[str | None, str | None]:
    """The model and the hook, if a config.json or the published path names them."""
    if (path.parent / "config.json").exists():
        return _place_in_gemma_3(load_json(path.parent / "config.json"))
    published = _published(path)
    if not published:
        return None, None
    repository = REPOSITORY.search(published[0])
    layer = next(filter(None, (re.fullmatch(r"layer_(\d+)", part) for part in published)), None)
    if repository is None or layer is None:
        return None, None
    size, tuned, site = repository.groups()
    model = f"google/gemma-2-{size}" + ("-it" if tuned == "it" else "")
    return model, f"blocks.{layer[1]}.{SITES[site]}"


def _published(path: Path) -> tuple[str, ...]:
    """The path from the published repository's folder on."""
    parts = path.absolute().parts
    starts = [number for number, part in enumerate(parts) if PUBLISHED.search(part)]
    return parts[starts[-1] :] if starts else ()


def _published_as_transcoder(path: Path) -> bool:
    repository, *below = _published(path) or ("",)
    return "transcoder" in repository or any(OTHER_KINDS.fullmatch(part) for part in below)


def _place_in_gemma_3(config: Record) -> tuple[str | None, str | None]:
    architecture = config.text("architecture")
    if architecture not in (None, "jump_relu"):
        raise UsageError(
            f"{config.path}: the architecture is {architecture[:40]!r}, not 'jump_relu'."
        )
    if config.text("hf_hook_point_out") is not None:
        raise UsageError(f"{config.path} describes a transcoder, not an SAE.")
    module = config.text("hf_hook_point_in") or ""
    hooks = [
        f"blocks.{found[1]}.{site}"
        for pattern, site in MODULES.items()
        if (found := re.fullmatch(pattern, module))
    ]
    return config.text("model_name"), hooks[0] if hooks else None

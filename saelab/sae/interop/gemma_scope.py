"""Gemma Scope: JumpReLU SAEs in `params.npz` (Gemma 2) or `params.safetensors` (Gemma 3).

W_enc [d_in d_sae] and W_dec [d_sae d_in] are in saelab's layout, the encoder does not subtract
b_dec, and z = ReLU(a) where a > threshold (arXiv 2408.05147). The file does not name the model: the
published path does, and for Gemma 3 a config.json beside the file. A transcoder's skip connection
is x @ affine_skip_connection, [d_in d_out], not transposed.

The embedding SAEs of Gemma 2 read embeddings before Gemma multiplies them by sqrt(d_in).
"""

import re
from dataclasses import dataclass
from pathlib import Path

from saelab.config import UsageError
from saelab.sae.interop.contents import NamedTensors, Record
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.hints import Hints
from saelab.sae.interop.restricted import load_json, load_npz, load_safetensors

NPZ_FILE = "params.npz"
SAFETENSORS_FILE = "params.safetensors"
NEEDED = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
SKIP = "affine_skip_connection"
UNKNOWN = Hints()

PUBLISHED = re.compile(r"(?:^|--)gemma-scope-[a-z0-9-]+$")
"""A published repository's folder, under its own name or in a Hugging Face cache."""
REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)$")
OTHER_KINDS = re.compile(r"(transcoder|clt|crosscoder)(_[a-z]+)?")
"""Folders of the Gemma Scope 2 repositories that hold no SAEs."""
SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
MLP = "ln2.hook_normalized", "hook_mlp_out"
"""What the transcoders of Gemma 2 read, before the norm's gain, and what they write."""
MODULES = {
    r"model\.layers\.(\d+)\.output": "hook_resid_post",
    r"model\.layers\.(\d+)\.self_attn\.o_proj\.input": "attn.hook_z",
    r"model\.layers\.(\d+)\.pre_feedforward_layernorm\.output": "mlp.hook_in",
    r"model\.layers\.(\d+)\.post_feedforward_layernorm\.output": "hook_mlp_out",
}
"""The modules that Gemma 3's config.json names, as TransformerLens hooks."""


@dataclass(frozen=True)
class PublishedPlace:
    """What is known of an SAE's place beside its tensors.

    Attributes:
        transcoder: whether it writes another site than it reads; None: nothing says.
    """

    model: str | None = None
    hook: str | None = None
    hook_out: str | None = None
    transcoder: bool | None = None


def read_gemma_scope(path: Path, hints: Hints = UNKNOWN) -> ForeignSAE:
    """The SAE or transcoder in `path`: a `.npz` or `.safetensors` file, or its directory.

    A skip connection, a config.json with another output, or a caller who knows make a transcoder;
    only where these are silent, the folder of the published repository does.

    Raises:
        UsageError: there is no such file, it is damaged, or it is a layer of a cross-layer
            transcoder or of a crosscoder.
    """
    if path.is_dir():
        path = path / (NPZ_FILE if (path / NPZ_FILE).exists() else SAFETENSORS_FILE)
    weights = _weights(load_safetensors(path) if path.suffix == ".safetensors" else load_npz(path))
    place = _place(path)
    skip = weights.matrix(SKIP) if SKIP in weights.tensors else None
    W_enc, W_dec = weights.matrix("W_enc"), weights.matrix("W_dec")
    told = place.transcoder if hints.transcoder is None else hints.transcoder
    transcoder = skip is not None or bool(told)
    return ForeignSAE(
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=weights.vector("b_enc"),
        b_dec=weights.vector("b_dec"),
        threshold=weights.vector("threshold", W_enc.shape[1]).clamp_min(0),
        subtract_b_dec=False,
        hook=place.hook,
        transcoder=transcoder,
        hook_out=place.hook_out if transcoder else None,
        W_skip=skip,
        model=place.model,
        source=f"Gemma Scope jumprelu{' transcoder' if transcoder else ''}",
    )


def _weights(stored: NamedTensors) -> NamedTensors:
    """The tensors under one spelling: some files say w_enc and w_dec."""
    tensors = {re.sub(r"^w_", "W_", name): tensor for name, tensor in stored.tensors.items()}
    if "W_dec" in tensors and tensors["W_dec"].ndim > 2:
        raise UsageError(
            f"{stored.path} writes several sites (W_dec has shape "
            f"{list(tensors['W_dec'].shape)}): it is a layer of a cross-layer transcoder or of a "
            "crosscoder, which cannot be imported by itself."
        )
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and bool((factor != 1).any()):
        raise UsageError(
            f"{stored.path} has a scaling factor other than 1, whose meaning is not documented."
        )
    weights = NamedTensors(stored.path, tensors)
    weights.check_names(NEEDED, {SKIP})
    return weights


def _place(path: Path) -> PublishedPlace:
    """What a config.json, or the published path, says."""
    if (path.parent / "config.json").exists():
        return _place_in_gemma_3(load_json(path.parent / "config.json"))
    published = _published(path)
    if not published:
        return PublishedPlace()
    repository = REPOSITORY.search(published[0])
    layer = next(filter(None, (re.fullmatch(r"layer_(\d+)", part) for part in published)), None)
    if repository is None:
        kinds = [OTHER_KINDS.fullmatch(part) for part in published[1:]]
        return PublishedPlace(transcoder=True if any(kinds) else None)
    size, tuned, site = repository.groups()
    model = f"google/gemma-2-{size}" + ("-it" if tuned == "it" else "")
    transcoder = site == "transcoders"
    if layer is None:
        return PublishedPlace(transcoder=transcoder)
    reads, writes = MLP if transcoder else (SITES[site], SITES[site])
    at = f"blocks.{layer[1]}."
    return PublishedPlace(model, at + reads, at + writes if transcoder else None, transcoder)


def _published(path: Path) -> tuple[str, ...]:
    """The path from the published repository's folder on."""
    parts = path.absolute().parts
    starts = [number for number, part in enumerate(parts) if PUBLISHED.search(part)]
    return parts[starts[-1] :] if starts else ()


def _place_in_gemma_3(config: Record) -> PublishedPlace:
    architecture = config.text("architecture")
    if architecture not in (None, "jump_relu"):
        raise UsageError(
            f"{config.path}: the architecture is {architecture[:40]!r}, not 'jump_relu'."
        )
    into, out = (config.text(f"hf_hook_point_{end}") for end in ("in", "out"))
    transcoder = out is not None and out != into
    return PublishedPlace(config.text("model_name"), _hook(into), _hook(out), transcoder)


def _hook(module: str | None) -> str | None:
    for pattern, site in MODULES.items():
        if found := re.fullmatch(pattern, module or ""):
            return f"blocks.{found[1]}.{site}"
    return None

"""EleutherAI sparsify: `cfg.json` and `sae.safetensors`, in a directory named after the hook.

encoder.weight is an nn.Linear's, [d_sae d_in]; W_dec is [d_sae d_in] like saelab's. The encoder
subtracts b_dec and rectifies before it selects. Files of 2024 may say `signed`: then nothing is
rectified, and the k pre-activations of largest magnitude keep their signs.

A skip connection makes a transcoder. Files of 2024-11 to 2025-02 lack the key `transcode` and have
`skip_connection` alone; their encoder still subtracts b_dec.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from saelab.config import UsageError
from saelab.sae.affine import products
from saelab.sae.interop.contents import Record
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.restricted import load_json, load_safetensors

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae.safetensors"
RUN_FILE = "config.json"
"""One directory up: the configuration of the whole run, which names the model."""


def read_sparsify(path: Path) -> ForeignSAE:
    """The SAE that sparsify saved in the directory `path`.

    Raises:
        UsageError: a file is missing, damaged or contradicts the other, or it selects by groups,
            which neither k nor thresholds express.
    """
    cfg = load_json(path / CONFIG_FILE)
    _refuse_other_kinds(cfg)
    weights = load_safetensors(path / WEIGHTS_FILE)
    kind = _kind(cfg)
    weights.check_names(
        {"encoder.weight", "encoder.bias", "W_dec", "b_dec", *(["W_skip"] if kind.skip else [])}
    )
    k = cfg.integer("k")
    if k is None:
        raise UsageError(f"{cfg.path} has no k, which a top-k SAE needs.")
    W_enc, b_dec = weights.matrix("encoder.weight").T, weights.vector("b_dec")
    b_enc = weights.vector("encoder.bias", W_enc.shape[1])
    if kind.transcoder and kind.subtracts:
        if len(b_dec) != len(W_enc):
            raise UsageError(
                f"{weights.path}: b_dec has {len(b_dec)} entries, but the encoder, which subtracts "
                f"it, reads {len(W_enc)}."
            )
        b_enc = b_enc - products(b_dec[None], W_enc, torch.float32)[0]
    sae = ForeignSAE(
        W_enc=W_enc,
        W_dec=weights.matrix("W_dec"),
        b_enc=b_enc,
        b_dec=b_dec,
        k=k,
        signed=cfg.flag("signed", default=False),
        subtract_b_dec=not kind.transcoder,
        transcoder=kind.transcoder,
        W_skip=weights.matrix("W_skip").T if kind.skip else None,
        # A transcoder is named after the module whose input it reads and whose output it
        # reconstructs.
        hook=None if kind.transcoder else _hook(path),
        model=_model(path),
        source="sparsify topk",
    )
    _check_widths(cfg, sae)
    return sae


@dataclass(frozen=True)
class _Kind:
    transcoder: bool
    skip: bool
    subtracts: bool
    """Whether the encoder reads x - b_dec."""


def _kind(cfg: Record) -> _Kind:
    skip = cfg.flag("skip_connection", default=False)
    transcoder = cfg.flag("transcode", default=skip)
    if skip and not transcoder:
        raise UsageError(
            f"{cfg.path}: an SAE with a skip connection would copy what it reads; only a "
            "transcoder ('transcode': true) has one."
        )
    # The key was introduced together with encoders that do not subtract b_dec.
    return _Kind(transcoder, skip, subtracts=cfg.values.get("transcode") is not True)


def _refuse_other_kinds(cfg: Record) -> None:
    activation = cfg.text("activation") or "topk"
    if activation != "topk":
        raise UsageError(
            f"{cfg.path}: the activation is {activation[:40]!r}, but only 'topk' has a counterpart."
        )


def _check_widths(cfg: Record, sae: ForeignSAE) -> None:
    d_in = cfg.integer("d_in")
    if d_in not in (None, sae.d_in):
        raise UsageError(f"{cfg.path}: d_in is {d_in}, but the encoder has {sae.d_in}.")
    expansion = cfg.integer("expansion_factor")
    d_sae = cfg.integer("num_latents") or (None if expansion is None else sae.d_in * expansion)
    if d_sae not in (None, sae.d_sae):
        raise UsageError(f"{cfg.path} describes {d_sae} latents, but the encoder has {sae.d_sae}.")


def _hook(path: Path) -> str | None:
    """The hook after a whole layer. Inside a layer, models differ in what a module's output is."""
    found = re.fullmatch(r"(?:[a-z_]+\.)*(?:layers|h)\.(\d+)", path.resolve().name)
    return f"blocks.{found[1]}.hook_resid_post" if found else None


def _model(path: Path) -> str | None:
    run = path.resolve().parent / RUN_FILE
    if not run.is_file():
        return None
    config = load_json(run)
    # A config.json without this part is not sparsify's.
    return config.text("model") if isinstance(config.values.get("sae"), dict) else None

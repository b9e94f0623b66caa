"""Writing a TopK SAE or transcoder in the form that EleutherAI's sparsify loads."""

from pathlib import Path

from saelab.config import UsageError
from saelab.files import json_bytes
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.sparsify import CONFIG_FILE, WEIGHTS_FILE
from saelab.sae.interop.write import write_new


def write_sparsify(foreign: ForeignSAE, directory: Path) -> None:
    """Save `foreign` in a new directory that `SparseCoder.load_from_disk` of sparsify reads.

    An SAE's encoder there subtracts b_dec, a transcoder's subtracts nothing.

    Raises:
        UsageError: `directory` already holds another SAE or cannot be written to, or it is no TopK
            SAE of rows as they are, or a transcoder that writes another width than it reads.
    """
    if foreign.k is None or foreign.signed or foreign.row_norm is not None:
        raise UsageError(
            "sparsify has only SAEs that keep the k largest latents of rows as they are; TopK SAEs "
            "and transcoders can be exported."
        )
    if foreign.d_out != foreign.d_in:
        raise UsageError(
            f"sparsify's transcoders write as many numbers as they read; this one reads "
            f"{foreign.d_in} and writes {foreign.d_out}."
        )
    sae = foreign if foreign.transcoder else foreign.reading(less_b_dec=True)
    tensors = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip.T
    cfg = {
        "activation": "topk",
        "expansion_factor": max(1, sae.d_sae // sae.d_in),
        "num_latents": sae.d_sae,
        "k": foreign.k,
        "normalize_decoder": False,
        "multi_topk": False,
        "transcode": sae.transcoder,
        "skip_connection": sae.W_skip is not None,
        "d_in": sae.d_in,
    }
    write_new(directory, {WEIGHTS_FILE: tensors, CONFIG_FILE: json_bytes(cfg)})

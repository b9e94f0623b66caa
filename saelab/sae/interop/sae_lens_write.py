"""Writing an SAE or a transcoder in the form that SAELens 6 loads."""

from pathlib import Path
from typing import Any

from saelab.config import UsageError
from saelab.files import json_bytes
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.pursuit import PURSUIT
from saelab.sae.interop.sae_lens import CONFIG_FILE, WEIGHTS_FILE
from saelab.sae.interop.sae_lens_model import ROW_NORMS
from saelab.sae.interop.stated import TrainedOn
from saelab.sae.interop.write import write_new
from saelab.sites import Site

PROCESSING = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
"""What TransformerLens may do to a model's weights, and nothing did to this SAE's."""
WRITTEN_VERSION = "6.0.0"
"""From this version on, `metadata` holds the facts about the language model."""


def write_sae_lens(foreign: ForeignSAE, directory: Path) -> None:
    """Save `foreign` in a new directory that `SAE.load_from_disk` of SAELens 6 reads.

    The architecture is `standard` if every threshold is zero, `jumprelu` with other thresholds,
    `gated` with a gate, `topk` with k, and, which only the latest SAELens versions read, `abstopk`
    with k and signed codes and `matching_pursuit` with steps. A transcoder's is `transcoder`, with
    the prefixes `skip_` and `jumprelu_` where they apply. Matryoshka prefixes and the k of
    BatchTopK training go into the metadata, as SAELens does it.

    Raises:
        UsageError: `directory` already holds another SAE or cannot be written to, or the SAE is a
            transcoder that selects by k or by a gate.
    """
    if foreign.transcoder and foreign.threshold is None:
        rule = "k" if foreign.gate is None else "a gate"
        raise UsageError(
            f"SAELens has no transcoder that selects its latents by {rule}; JumpReLU, BatchTopK, "
            "Matryoshka and standard transcoders can be exported."
        )
    tensors = {"W_dec": foreign.W_dec, "b_dec": foreign.b_dec}
    if foreign.steps is None:
        tensors["W_enc"] = foreign.W_enc
    if foreign.gate is None and foreign.steps is None:
        tensors["b_enc"] = foreign.b_enc
    elif (gate := foreign.gate) is not None:
        tensors |= {"b_mag": foreign.b_enc, "b_gate": gate.b_gate, "r_mag": gate.r_mag}
    cfg = _config(foreign)
    if cfg["architecture"].startswith("jumprelu") and foreign.threshold is not None:
        tensors["threshold"] = foreign.threshold
    if foreign.W_skip is not None:
        tensors["W_skip"] = foreign.W_skip.T
    write_new(directory, {WEIGHTS_FILE: tensors, CONFIG_FILE: json_bytes(cfg)})


def _config(foreign: ForeignSAE) -> dict[str, Any]:
    if foreign.gate is not None:
        architecture, selection = "gated", {}
    elif foreign.steps is not None:
        architecture = PURSUIT
        selection = {"max_iterations": foreign.steps, "residual_threshold": 0.0}
        selection["stop_on_duplicate_support"] = False
    elif foreign.k is not None:
        architecture = "abstopk" if foreign.signed else "topk"
        selection = {"k": foreign.k, "rescale_acts_by_decoder_norm": False}
    else:
        plain = foreign.threshold is not None and not foreign.threshold.any()
        architecture, selection = ("standard" if plain else "jumprelu"), {}
        if foreign.transcoder:
            parts = ("" if plain else "jumprelu", "" if foreign.W_skip is None else "skip")
            architecture = "_".join([*filter(None, parts), "transcoder"])
            selection = {"d_out": foreign.d_out}
    site = Site.find(foreign.hook or "")
    is_hook_z = site is not None and site.part == "attn.hook_z"
    return {
        "architecture": architecture,
        "d_in": foreign.d_in,
        "d_sae": foreign.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": foreign.subtract_b_dec,
        "normalize_activations": next(
            (name for name, norm in ROW_NORMS.items() if norm == foreign.row_norm), "none"
        ),
        "reshape_activations": "hook_z" if is_hook_z else "none",
        **selection,
        "metadata": _metadata(foreign),
    }


def _metadata(foreign: ForeignSAE) -> dict[str, Any]:
    metadata: dict[str, Any] = {"sae_lens_version": WRITTEN_VERSION}
    if foreign.model is not None:
        metadata["model_name"] = foreign.model
    if foreign.hook is not None:
        metadata["hook_name"] = foreign.hook
    if foreign.hook_out is not None:
        metadata["hook_name_out"] = foreign.hook_out
    # SAELens loads the model with these. Centred writing weights give rows without a mean.
    processed = dict.fromkeys(PROCESSING, False)
    metadata["model_from_pretrained_kwargs"] = processed | {
        "center_writing_weights": foreign.row_norm == "centre"
    }
    metadata |= _of_text(foreign.text)
    details: dict[str, Any] = {}
    if foreign.batch_k is not None:
        details["k"] = foreign.batch_k
    if foreign.prefixes is not None:
        details["matryoshka_widths"] = list(foreign.prefixes)
    if details:
        kind = "batchtopk" if foreign.prefixes is None else "matryoshka_batchtopk"
        metadata |= {"training_architecture": kind, "training_architecture_details": details}
    return metadata


def _of_text(text: TrainedOn | None) -> dict[str, Any]:
    if text is None:
        return {}
    named = {} if text.dataset is None else {"dataset_path": text.dataset}
    return named | {
        "prepend_bos": text.prepend_bos,
        "context_size": text.context_size,
        "exclude_special_tokens": list(text.special_token_ids) or False,
    }

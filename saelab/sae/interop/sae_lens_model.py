"""What SAELens' files say of the rows: how they were scaled, and of which model they were."""

import re

from saelab.config import UsageError
from saelab.sae.interop.contents import Record
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.row_norm import RowNorm
from saelab.sites import Site

IN_THE_STREAM = {
    *("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post"),
    *("hook_attn_out", "hook_mlp_out"),
}
"""Hooks in the residual stream: their values are centred when the writing weights are."""
INSIDE_HEADS = {f"attn.hook_{x}" for x in ("q", "k", "v", "z", "rot_q", "rot_k", "attn_scores")}
WITHOUT_LAYER_NORM = re.compile(
    r"(code)?llama|mi[sx]tral|gemma|qwen|olmo-?2|phi-?3|smollm|yi-", re.IGNORECASE
)
"""Models with RMS norms. TransformerLens never centres their writing weights."""

ROW_NORMS: dict[str, RowNorm] = {"layer_norm": "layer-norm", "constant_norm_rescale": "unit-norm"}
"""SAELens' names of what is done to each row by itself."""
BY_A_CONSTANT = "expected_average_only_in"


def facts(cfg: Record, key: str) -> Record:
    """The object that holds `key`: `metadata`, or before version 6 cfg.json itself."""
    metadata = cfg.record("metadata")
    return metadata if key in metadata.values else cfg


def normalisation(cfg: Record) -> str:
    """What is done to the rows before the SAE reads them; `none` for nothing.

    Raises:
        UsageError: it is neither known nor expressible.
    """
    value = cfg.values.get("normalize_activations")
    if isinstance(value, bool):  # as it was while there was only one way
        return BY_A_CONSTANT if value else "none"
    name = cfg.text("normalize_activations") or "none"
    known = ("none", BY_A_CONSTANT, *ROW_NORMS)
    if name not in known:
        raise UsageError(
            f"{cfg.path}: normalize_activations is {name[:40]!r}, which has no counterpart; "
            f"{', '.join(known)} have."
        )
    return name


def on_centred_rows(cfg: Record, sae: ForeignSAE) -> bool:
    """Whether the SAE was trained on rows whose mean over the coordinates is zero.

    Raises:
        UsageError: the model's weights were processed in a way that cannot be folded into the SAE.
    """
    key = "model_from_pretrained_kwargs"
    kwargs = facts(cfg, key).record(key)
    processed = {
        name
        for name in (
            "center_writing_weights",
            "fold_value_biases",
            "refactor_factored_attn_matrices",
        )
        if kwargs.flag(name, default=False)
    }
    hooks = [Site.find(hook) for hook in (sae.hook, sae.hook_out) if hook is not None]
    inside = [site for site in hooks if site is not None and site.part in INSIDE_HEADS]
    if inside and (changed := sorted(processed - {"center_writing_weights"})):
        raise UsageError(
            f"{cfg.path}: the SAE was trained on {inside[0].hook} of a model with {changed[0]}, "
            "which changes what that hook holds; it cannot be used on the plain model."
        )
    if "center_writing_weights" not in processed or WITHOUT_LAYER_NORM.search(sae.model or ""):
        return False
    return not hooks or (hooks[0] is not None and hooks[0].part in IN_THE_STREAM)

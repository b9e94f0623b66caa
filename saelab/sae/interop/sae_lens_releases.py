"""What SAELens' own registry names, if it is installed: its table is read as data."""

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from saelab.config import UsageError
from saelab.sae.interop.releases import Known, closest
from saelab.sae.row_norm import RowNorm

NORMS: dict[str, RowNorm] = {"constant_norm_rescale": "unit-norm", "layer_norm": "layer-norm"}
WEIGHTS = (".pt", ".pth", ".npz", ".safetensors")
SAELENS = "saelens:"
UNREAD = {
    "temporal": "a temporal SAE, whose codes depend on earlier tokens",
    "mntss_clt_layer_transcoder": "a layer of a cross-layer transcoder with its decoders summed",
}
"""What SAELens' registry names that is no SAE of single rows."""


def find_in_sae_lens(name: str) -> Known:
    """What `saelens:RELEASE/ID` means in the registry of an installed SAELens, read as data.

    Raises:
        UsageError: SAELens is not installed, or its registry has no such SAE.
    """
    release, _, sae_id = name.removeprefix(SAELENS).partition("/")
    table = _sae_lens_table()
    row = table.get(release)
    if not isinstance(row, dict):
        near = closest(release, table)
        hint = f"; {' or '.join(near)} is one" if near else ""
        raise UsageError(f"SAELens' registry has no release {release!r}{hint}.")
    listed = {str(each.get("id")): each for each in row.get("saes") or ()}
    if sae_id not in listed:
        near = closest(sae_id, listed)
        raise UsageError(
            f"SAELens' release {release} has no SAE {sae_id!r}; it has {len(listed)}, such as "
            f"{', '.join(near or list(listed)[:3])}."
        )
    return _of_sae_lens(name, row, listed[sae_id])


def _of_sae_lens(name: str, row: Mapping[str, Any], sae: Mapping[str, Any]) -> Known:
    if (kind := row.get("conversion_func")) in UNREAD:
        raise UsageError(f"{name} is {UNREAD[kind]}, which cannot be imported.")
    overrides = {**(row.get("config_overrides") or {}), **(sae.get("config_overrides") or {})}
    path = str(sae["path"])
    kwargs = overrides.get("model_from_pretrained_kwargs") or {}
    norm = NORMS.get(str(overrides.get("normalize_activations")))
    if norm is None and kwargs.get("center_writing_weights"):
        norm = "centre"
    explained = sae.get("variance_explained")
    spans = {"l0": sae.get("l0"), "fvu": None if explained is None else 1 - explained}
    return Known(
        name=name,
        repo=str(row["repo_id"]),
        files=(path,) if path.endswith(WEIGHTS) and kind is not None else (),
        read=path,
        model=str(overrides.get("model_name") or row.get("model")),
        site=overrides.get("hook_name"),
        transcoder=True if kind == "gemma_2_transcoder" else None,
        norm=norm,
        scale=sae.get("norm_scaling_factor"),
        figures={k: (float(v), float(v)) for k, v in spans.items() if v is not None},
    )


@cache
def _sae_lens_table() -> dict[str, Any]:
    spec = importlib.util.find_spec("sae_lens")
    file = None if spec is None or spec.origin is None else Path(spec.origin).parent
    file = None if file is None else file / "pretrained_saes.yaml"
    if file is None or not file.is_file():
        raise UsageError(
            "Names that begin with saelens: are read from the registry of an installed SAELens, "
            "which is not there; use `saelab import list` or hf:owner/repo/path."
        )
    # The C loader is five times as fast on 1.5 MB; a build of PyYAML may lack it.
    return yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

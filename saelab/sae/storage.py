"""An SAE as one safetensors file that needs nothing else: weights, configuration, and V."""

import inspect
import json
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from saelab.config import UsageError
from saelab.files import atomic_write
from saelab.sae.base import AbstractSAE
from saelab.sae.transcoder import make_transcoder
from saelab.sae.variants import BUILT_IN, SAE_CONFIG, check_variant, variant

FORMAT = "saelab-sae/1"


def save_sae(sae: AbstractSAE, path: Path, facts: dict[str, str] | None = None) -> None:
    """Write `sae` to `path` (safetensors); `facts` join the header beside the configuration.

    Raises:
        UsageError: its variant is not registered, or is another's, so that it would not be loaded
            again as what it is.
    """
    _check_own(sae)
    tensors = {name: value.contiguous().cpu() for name, value in sae.state_dict().items()}
    header = {
        **(facts or {}),
        "format": FORMAT,
        "config": sae.config.model_dump_json(),
        "d_in": str(sae.d_in),
    }
    if sae.config.variant not in BUILT_IN:
        header["variant_from"] = type(sae.config).__module__
    if sae.is_transcoder:
        header |= {"d_out": str(sae.d_out), "skip": str(sae.W_skip is not None)}
    atomic_write(path, save(tensors, metadata=header))


def load_sae(path: Path, device: str | torch.device = "cpu") -> AbstractSAE:
    """The SAE saved at `path` by `save_sae`, on `device`, in evaluation mode.

    Raises:
        UsageError: the file is missing, damaged, of another format, or its shapes do not fit; or
            its variant is of a package that is not installed.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist.") from None
    except SafetensorError as error:
        raise UsageError(f"{path} is not a whole safetensors file: {error}.") from error
    if header.get("format") != FORMAT:
        raise UsageError(f"{path} is not an SAE of saelab: its format is {header.get('format')!r}.")
    _check_known(path, header)
    try:
        config = SAE_CONFIG.validate_json(header["config"])
        sae = config.build(int(header["d_in"]))
        if "d_out" in header:
            make_transcoder(sae, int(header["d_out"]), skip=header["skip"] == "True")
        sae.load_state_dict(tensors)
    except (KeyError, ValidationError, RuntimeError, json.JSONDecodeError) as error:
        raise UsageError(f"{path} does not describe a whole SAE: {error}") from error
    return sae.to(device).eval().requires_grad_(requires_grad=False)


def _check_own(sae: AbstractSAE) -> None:
    check_variant(sae.config)
    for base in type(sae).__mro__[1:]:
        if issubclass(base, AbstractSAE) and not inspect.isabstract(base):
            raise UsageError(
                f"{type(sae).__name__} would be loaded as {base.__name__}, which it derives from; "
                "derive it from AbstractSAE, and give its options a variant of their own."
            )


def _check_known(path: Path, header: dict[str, str]) -> None:
    """Refuse a variant that another package has, and that is not here."""
    if (module := header.get("variant_from")) is None:
        return
    name = str(json.loads(header.get("config", "{}")).get("variant"))
    try:
        variant(name)
    except UsageError as error:
        raise UsageError(
            f"{path} holds an SAE of the variant {name!r} from {module!r}, which is not known "
            f"here: install that package, or import it and call saelab.register_variant. {error}"
        ) from None

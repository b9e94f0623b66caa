"""An SAE as one self-contained safetensors file: weights, configuration, and V.

Files are untrusted: the shapes in the header are compared with those of the configuration before
memory of their size is allocated.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from saelab.config import UsageError, first_problem
from saelab.formats.json_file import parse_json
from saelab.formats.mapped import check_numbers, open_tensors
from saelab.formats.tensors import (
    TensorHeader,
    check_seal,
    in_order,
    read_tensor_header,
    read_tensors,
    write_in_pieces,
    write_tensors,
)
from saelab.sae.affine import HALVES
from saelab.sae.base import AbstractSAE
from saelab.sae.decoder import NARROW, widens
from saelab.sae.row_norm import RowNorm
from saelab.sae.row_normalised import RowNormalised
from saelab.sae.spread import dims_of, empty_like
from saelab.sae.transcoder import make_transcoder
from saelab.sae.variants import BUILT_IN, SAE_CONFIG, check_variant, variant

FORMAT = "saelab-sae/1"
MAX_WIDTH = 2**31
"""Largest width of activations, and largest number of latents; larger files are refused."""


def save_sae(sae: AbstractSAE, path: Path, facts: dict[str, str] | None = None) -> None:
    """Write `sae` to `path` (sealed safetensors); `facts` join the header beside the configuration.

    Equal SAEs and facts give equal bytes. The processes that hold an SAE together all call this;
    the first writes the file, which is never whole in memory.

    Raises:
        UsageError: its variant is not registered, or the name belongs to another class; the file
            could not be loaded as the same SAE.
    """
    _check_own(sae)
    header = {
        **(facts or {}),
        "format": FORMAT,
        "config": sae.config.model_dump_json(),
        "d_in": str(sae.d_in),
    }
    if sae.config.variant not in BUILT_IN:
        header["variant_from"] = type(sae.config).__module__
    if sae.row_norm is not None:
        header["row_norm"] = sae.row_norm
    if sae.is_transcoder:
        header |= {"d_out": str(sae.d_out), "skip": str(sae.W_skip is not None)}
    _write(sae, path, header)


def _write(sae: AbstractSAE, path: Path, header: Mapping[str, str]) -> None:
    own, shard = sae.state_dict(), sae.shard
    if shard is None:
        write_tensors(path, own, header)
        return
    if shard.replicas.number:  # Another replica has the same, and writes it.
        return
    dims, whole = dims_of(sae), empty_like(sae, sae.config.d_sae).state_dict()

    def pieces(name: str) -> Iterable[Tensor]:
        dim = dims.get(name)
        return [own[name]] if dim is None else shard.pieces_all(own[name], dim)

    if shard.rank == 0:
        write_in_pieces(path, whole, pieces, header)
        return
    for name in in_order(whole):
        for _ in pieces(name):
            pass


def read_sae_header(path: Path) -> tuple[TensorHeader, AbstractSAE]:
    """The header of the SAE at `path`, and the SAE on the meta device; no weight is read.

    Raises:
        UsageError: the file is missing, damaged, of another format, or its shapes do not fit.
    """
    header = read_tensor_header(path)
    facts = header.metadata
    if facts.get("format") != FORMAT:
        raise UsageError(
            f"{path} is not an SAE of saelab: its format is {str(facts.get('format'))[:60]!r}."
        )
    try:
        with torch.device("meta"):
            sae = _built(facts, path)
    except ValidationError as error:
        problem = first_problem(error)
        raise UsageError(f"{path} does not describe a whole SAE: {problem}.") from None
    except (KeyError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"{path} does not describe a whole SAE: {reason}.") from None
    expected = sae.state_dict()
    header.check_shapes({name: tensor.shape for name, tensor in expected.items()})
    header.check_floats([name for name, tensor in expected.items() if tensor.is_floating_point()])
    return header, sae


def load_sae(path: Path, device: str | torch.device = "cpu") -> AbstractSAE:
    """The SAE saved at `path` by `save_sae`, on `device`, in evaluation mode.

    W_enc and W_dec of 16 bits stay so, where the SAE widens them as it reads them (`widens`). Of a
    large file on the CPU, weights are views of it: see `saelab.formats.mapped`.

    Raises:
        UsageError: the file is missing, damaged, of another format, its shapes do not fit, a weight
            is not finite, or its variant belongs to a package that is not installed.
    """
    header, sae = read_sae_header(path)
    types = {name: tensor.dtype for name, tensor in sae.state_dict().items()}
    if widens(sae):
        narrow = {n: header.tensors[n].dtype for n in NARROW if n in types}
        types |= {name: dtype for name, dtype in narrow.items() if dtype in HALVES}
    # Buffers may be NaN, e.g. a threshold that was never calibrated.
    trained = [name for name, _ in sae.named_parameters()]
    if torch.device(device).type == "cpu":
        stored = open_tensors(header, finite=trained)
    else:
        stored = read_tensors(header, device, finite=trained)
    sae.load_state_dict({n: t.to(types[n]) for n, t in stored.items()}, assign=True)
    return sae.to(device).eval().requires_grad_(requires_grad=False)


def check_sae(path: Path) -> None:
    """Read a saved SAE whole, however large it is.

    Raises:
        UsageError: as `load_sae`.
    """
    sae = load_sae(path)
    header = read_tensor_header(path)
    check_seal(header)
    trained = [name for name, _ in sae.named_parameters()]
    check_numbers(header, sae.state_dict(), trained)


def _built(facts: Mapping[str, str], path: Path) -> AbstractSAE:
    values = parse_json(facts["config"].encode(), f"The configuration in {path}")
    if isinstance(values, dict):
        _check_known(path, facts, str(values.get("variant")))
    config = SAE_CONFIG.validate_python(values)
    widths = {name: _width(facts[name], name) for name in ("d_in", "d_out") if name in facts}
    if config.d_sae > MAX_WIDTH:
        raise ValueError(f"d_sae is {config.d_sae}")
    sae = config.build(widths["d_in"])
    if "d_out" in widths:
        make_transcoder(sae, widths["d_out"], skip=facts["skip"] == "True")
    if (norm := facts.get("row_norm")) is None:
        return sae
    for known in get_args(RowNorm):
        if norm == known:
            return RowNormalised(sae, known)
    raise ValueError(f"row_norm is {norm[:40]!r}")


def _width(text: str, name: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 0 < int(text) <= MAX_WIDTH:
        raise ValueError(f"{name} is {text[:20]!r}")
    return int(text)


def _check_own(sae: AbstractSAE) -> None:
    check_variant(sae.config)
    for base in type(sae).__mro__[1:]:
        if issubclass(base, AbstractSAE) and not inspect.isabstract(base):
            raise UsageError(
                f"{type(sae).__name__} would be loaded as {base.__name__}, which it derives from; "
                "derive it from AbstractSAE, and give its options a variant of their own."
            )


def _check_known(path: Path, header: Mapping[str, str], name: str) -> None:
    """Refuse a variant that belongs to another package and is not installed."""
    if (module := header.get("variant_from")) is None:
        return
    try:
        variant(name)
    except UsageError as error:
        raise UsageError(
            f"{path} holds an SAE of the variant {name!r} from {module!r}, which is not known "
            f"here: install that package, or import it and call saelab.register_variant. {error}"
        ) from None

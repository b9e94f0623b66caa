"""A language model by name: the shipped one, a local checkpoint, or one of TransformerLens."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.collector import paused
from saelab.config import UsageError
from saelab.extras import required
from saelab.lm.checkpoint import location, read_checkpoint
from saelab.lm.protocol import ActivationSource, ModelInfo

if TYPE_CHECKING:
    from saelab.lm.bridge import BridgeLanguageModel

HASH_CHUNK = 1 << 20
"""Values that are hashed at once, which a processor's cache holds."""


@paused()
def load_language_model(
    name: str, *, device: str | torch.device = "auto", dtype: torch.dtype = torch.float32
) -> "BridgeLanguageModel":
    """The model called `name`, frozen, with raw weights, on TransformerLens hook names.

    Args:
        name: `tiny` (shipped with saelab), a local Hugging Face checkpoint directory, or the name
            of any model TransformerLens supports (fetched, or read from the local hub cache).
        device: `auto` takes the GPU if there is one.
        dtype: dtype of the weights and of the computation.

    Raises:
        UsageError: the name is none of these, or the model cannot be fetched; or as for
            `read_checkpoint`; or transformer-lens is not installed.
    """
    required("transformer_lens")
    resolved = resolve_device(device)
    # Importing transformer_lens takes seconds; nothing else needs it.
    weights, tokenizer = read_checkpoint(
        name, dtype=dtype, attention="eager", runner="saelab.lm.bridge"
    )
    from transformer_lens.model_bridge import TransformerBridge

    from saelab.lm.bridge import BridgeLanguageModel

    logging.getLogger("transformer_lens").setLevel(logging.ERROR)
    _install_nothing()
    with digested(weights) as digest:
        nn.Module.to(weights, resolved)
        try:
            bridge = TransformerBridge.boot_transformers(
                location(name), hf_model=weights, tokenizer=tokenizer, dtype=dtype, device=resolved
            )
        except ValueError as error:
            if "architecture" not in str(error):
                raise
            raise UsageError(
                f"{name} is a {type(weights).__name__}, which TransformerLens "
                f"{version('transformer-lens')} does not support."
            ) from error
        return BridgeLanguageModel(bridge, _info(name, bridge, tokenizer, digest()))


def _install_nothing() -> None:
    """Keep TransformerLens from installing packages.

    For a model that also reads images (Gemma 3 from 4B on) it would run pip to install torchvision,
    which may replace torch. Reading text needs none of it.
    """
    from transformer_lens.model_bridge.sources.transformers import helpers

    assert callable(helpers._ensure_torchvision), "TransformerLens has renamed its installer"
    helpers._ensure_torchvision = lambda: False


def load_recorded_model(
    facts: Mapping[str, Any], *, name: str | None = None, device: str | torch.device = "auto"
) -> "BridgeLanguageModel":
    """The model that a store or a run recorded, in the dtype recorded with it.

    `name` says where the model is now, if not at its old place.

    Raises:
        UsageError: the model does not exist.
    """
    dtype = recorded_dtype(facts)
    return load_language_model(name or str(facts["name"]), device=device, dtype=dtype)


def recorded_dtype(facts: Mapping[str, Any]) -> torch.dtype:
    """The dtype of the computation that a store or a run recorded."""
    return getattr(torch, str(facts.get("dtype", "float32")))


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype's name without the package: float32, bfloat16, ..."""
    return str(dtype).removeprefix("torch.")


def resolve_device(device: str | torch.device) -> torch.device:
    """The GPU for `auto` if there is one, else the CPU; any other name is taken as it is.

    A numbered GPU becomes the current one: kernels are launched and graphs recorded there.

    Raises:
        UsageError: the device does not exist here.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"The device {str(device)!r} is not available here.") from error
    chosen = torch.device(device)
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    return chosen


def device_beside(lm: ActivationSource | None, device: str | torch.device) -> torch.device:
    """As `resolve_device` for what runs `lm`, if there is one; for `auto`, where `lm` is.

    Raises:
        UsageError: the device does not exist here, or is not the one of `lm`.
    """
    if lm is None:
        return resolve_device(device)
    # Of several GPUs, one that is not numbered is the model's.
    own = lm.device
    where = resolve_device(own if str(device) in ("auto", own.type) else device)
    if where != own:
        raise UsageError(
            f"The model is on {own}, not on {where}; load it there, or leave out the device."
        )
    return where


def own_device(device: str) -> torch.device:
    """As `resolve_device`; for `auto` and `cuda`, the GPU of this one of the machine's processes.

    Raises:
        UsageError: the device does not exist here.
    """
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return resolve_device(device)
    number = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    return resolve_device(f"cuda:{number}")


@contextmanager
def digested(model: nn.Module) -> Iterator[Callable[[], str]]:
    """A context beside which the digest of a model's weights is computed; it gives what awaits it.

    It is the sha256 (hex) over the sorted names, shapes and float32 values of the parameters.
    Inside, the model may move to another device or dtype, and none of its values may be changed in
    place. Hashing takes a core, not Python's interpreter. An error inside ends it.
    """
    unwanted = Event()
    with ThreadPoolExecutor(1) as beside:
        future = beside.submit(_digest, model.state_dict(), unwanted)
        try:
            yield future.result
        except BaseException:
            unwanted.set()
            raise


def _digest(weights: Mapping[str, Tensor], unwanted: Event) -> str:
    digest, room = hashlib.sha256(), np.empty(HASH_CHUNK, np.float32)
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        for part in value.flatten().split(HASH_CHUNK):
            if unwanted.is_set():
                return ""
            digest.update(_float32(part.cpu(), room).data)
    return digest.hexdigest()


def _float32(part: Tensor, room: Float[np.ndarray, " room"]) -> Float[np.ndarray, " value"]:
    """Values as float32, if need be in `room`.

    By numpy: torch's threads would wait for each other where another thread keeps a core busy.
    """
    if part.dtype == torch.float32:
        return part.contiguous().numpy()
    found = room[: len(part)]
    if part.dtype == torch.bfloat16:  # The upper half of a float32.
        half = part.view(torch.uint16).numpy()
        np.left_shift(half, 16, out=found.view(np.uint32), dtype=np.uint32)
    else:
        narrow = part.is_floating_point() and part.element_size() == 1
        found[...] = (part.float() if narrow else part).numpy()  # numpy has no such numbers.
    return found


def _info(name: str, bridge: Any, tokenizer: Any, digest: str) -> ModelInfo:  # noqa: ANN401
    cfg = bridge.cfg
    return ModelInfo(
        **identity(name, tokenizer, digest),
        architecture=cfg.architecture,
        n_layers=cfg.n_layers,
        d_model=cfg.d_model,
        n_heads=cfg.n_heads,
        d_head=cfg.d_head,
        d_vocab=cfg.d_vocab,
        n_ctx=cfg.n_ctx,
        dtype=dtype_name(cfg.dtype),
    )


def identity(name: str, tokenizer: Any, digest: str) -> dict[str, Any]:  # noqa: ANN401
    """The fields of `ModelInfo` by which a model is known, whatever runs it."""
    return {
        "name": name if name == "tiny" or not Path(name).is_dir() else str(Path(name).resolve()),
        "weights_digest": digest,
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "special_token_ids": tuple(sorted(set(tokenizer.all_special_ids))),
    }


def tokenizer_digest(tokenizer: Any) -> str:  # noqa: ANN401 - transformers has no common class
    """sha256 (hex) of the tokenizer's JSON form, or of its vocabulary if it has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()

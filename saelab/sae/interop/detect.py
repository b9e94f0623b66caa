"""Which tool wrote a file or a directory, judged by its contents."""

import zipfile
from collections.abc import Callable
from pathlib import Path

from saelab.config import UsageError
from saelab.sae.interop import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    llama_scope,
    sae_lens,
    sparsify,
)
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.hints import Hints
from saelab.sae.interop.state_dict import read_state_dict

DIRECTORIES: dict[str, tuple[Callable[[Path, Hints], ForeignSAE], str]] = {
    sae_lens.WEIGHTS_FILE: (
        lambda path, _: _sae_weights(path),
        f"SAELens ({sae_lens.CONFIG_FILE} and {sae_lens.WEIGHTS_FILE})",
    ),
    llama_scope.SETTINGS_FILE: (
        lambda path, _: llama_scope.read_llama_scope(path),
        f"Llama Scope ({llama_scope.SETTINGS_FILE} and {llama_scope.WEIGHTS}, or "
        f"{llama_scope.LATER_SETTINGS_FILE} and {llama_scope.LATER_WEIGHTS})",
    ),
    sparsify.WEIGHTS_FILE: (
        lambda path, _: sparsify.read_sparsify(path),
        f"sparsify ({sparsify.CONFIG_FILE} and {sparsify.WEIGHTS_FILE})",
    ),
    dictionary_learning.WEIGHTS_FILE: (
        lambda path, hints: read_state_dict(path / dictionary_learning.WEIGHTS_FILE, hints),
        f"dictionary_learning ({dictionary_learning.CONFIG_FILE} and "
        f"{dictionary_learning.WEIGHTS_FILE})",
    ),
    gemma_scope.NPZ_FILE: (
        gemma_scope.read_gemma_scope,
        f"Gemma Scope ({gemma_scope.NPZ_FILE} or {gemma_scope.SAFETENSORS_FILE})",
    ),
    gemma_scope.SAFETENSORS_FILE: (gemma_scope.read_gemma_scope, ""),
}
"""For each layout: the file that identifies it, its reader, and its name in messages."""


UNKNOWN = Hints()
STATE_DICTS = (
    "a .pt file of OpenAI, Goodfire or Qwen-Scope (layer0.sae.pt); "
    "circuit-tracer (config.yaml and layer_0.safetensors, ...)"
)


def read_foreign(path: Path, hints: Hints = UNKNOWN) -> ForeignSAE:
    """The SAE in `path`, a directory or the file with the weights, of any known tool.

    What a file is, its contents say; `hints` say what no file does.

    Raises:
        UsageError: the layout is unknown or ambiguous, or its reader refuses the file.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist.")
    return _in_directory(path, hints) if path.is_dir() else _in_file(path, hints)


def _in_directory(directory: Path, hints: Hints) -> ForeignSAE:
    found = [name for name in DIRECTORIES if (directory / name).exists()]
    if not found and circuit_tracer.has_layers(directory):
        return circuit_tracer.read_circuit_tracer(directory)
    if not found:
        raise _unknown(directory)
    if len(found) > 1:
        raise UsageError(
            f"{directory} holds the weights of several SAEs ({', '.join(found)}); "
            "give the directory of one."
        )
    return DIRECTORIES[found[0]][0](directory, hints)


def _sae_weights(directory: Path) -> ForeignSAE:
    """SAELens' directory, or OpenMOSS' later one, whose weights have the same name."""
    later = directory / llama_scope.LATER_SETTINGS_FILE
    if later.exists() and not (directory / sae_lens.CONFIG_FILE).exists():
        return llama_scope.read_llama_scope(directory)
    return sae_lens.read_sae_lens(directory)


def _in_file(path: Path, hints: Hints) -> ForeignSAE:
    """A zip archive is recognised by its contents, other files by their names."""
    if not path.is_file():  # a pipe would be waited for, and a device may never end
        raise UsageError(f"{path} is not a regular file.")
    if zipfile.is_zipfile(path):
        return _in_zip(path, hints)
    if circuit_tracer.LAYER_FILE.fullmatch(path.name):
        return circuit_tracer.read_circuit_tracer(path)
    if path.name == gemma_scope.SAFETENSORS_FILE:
        return gemma_scope.read_gemma_scope(path, hints)
    if path.name in (sae_lens.WEIGHTS_FILE, sparsify.WEIGHTS_FILE):
        return DIRECTORIES[path.name][0](path.parent, hints)
    if path.name in (sae_lens.CONFIG_FILE, llama_scope.SETTINGS_FILE):
        return _in_directory(path.parent, hints)
    if path.name == llama_scope.WEIGHTS.name:
        return _in_directory(path.parent.parent, hints)
    raise _unknown(path)


def _in_zip(path: Path, hints: Hints) -> ForeignSAE:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UsageError(f"{path} is a damaged archive: {error}.") from error
    if any(name.endswith("/data.pkl") for name in names):
        return read_state_dict(path, hints)
    if names and all(name.endswith(".npy") for name in names):
        return gemma_scope.read_gemma_scope(path, hints)
    raise _unknown(path)


def _unknown(path: Path) -> UsageError:
    names = [name for _, name in DIRECTORIES.values() if name]
    known = "; ".join([*names, STATE_DICTS])
    return UsageError(f"{path} is no SAE of a known tool; known are {known}.")

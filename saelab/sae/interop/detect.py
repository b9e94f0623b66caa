"""Which tool wrote a file or a directory, judged by its contents."""

import zipfile
from collections.abc import Callable
from pathlib import Path

from saelab.config import UsageError
from saelab.sae.interop import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    sae_lens,
    sparsify,
)
from saelab.sae.interop.foreign import ForeignSAE

DIRECTORIES: dict[str, tuple[Callable[[Path], ForeignSAE], str]] = {
    sae_lens.WEIGHTS_FILE: (
        sae_lens.read_sae_lens,
        f"SAELens ({sae_lens.CONFIG_FILE} and {sae_lens.WEIGHTS_FILE})",
    ),
    sparsify.WEIGHTS_FILE: (
        sparsify.read_sparsify,
        f"sparsify ({sparsify.CONFIG_FILE} and {sparsify.WEIGHTS_FILE})",
    ),
    dictionary_learning.WEIGHTS_FILE: (
        dictionary_learning.read_dictionary_learning,
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


def read_foreign(path: Path) -> ForeignSAE:
    """The SAE in `path`, a directory or the file with the weights, of any known tool.

    Raises:
        UsageError: the layout is unknown or ambiguous, or its reader refuses the file.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist.")
    return _in_directory(path) if path.is_dir() else _in_file(path)


def _in_directory(directory: Path) -> ForeignSAE:
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
    return DIRECTORIES[found[0]][0](directory)


def _in_file(path: Path) -> ForeignSAE:
    """A zip archive is recognised by its contents, other files by their names."""
    if zipfile.is_zipfile(path):
        return _in_zip(path)
    if circuit_tracer.LAYER_FILE.fullmatch(path.name):
        return circuit_tracer.read_circuit_tracer(path)
    if path.name == gemma_scope.SAFETENSORS_FILE:
        return gemma_scope.read_gemma_scope(path)
    if path.name in (sae_lens.WEIGHTS_FILE, sparsify.WEIGHTS_FILE):
        return DIRECTORIES[path.name][0](path.parent)
    if path.name == sae_lens.CONFIG_FILE:
        return _in_directory(path.parent)
    raise _unknown(path)


def _in_zip(path: Path) -> ForeignSAE:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UsageError(f"{path} is a damaged archive: {error}.") from error
    if any(name.endswith("/data.pkl") for name in names):
        return dictionary_learning.read_dictionary_learning(path)
    if names and all(name.endswith(".npy") for name in names):
        return gemma_scope.read_gemma_scope(path)
    raise _unknown(path)


def _unknown(path: Path) -> UsageError:
    names = [name for _, name in DIRECTORIES.values() if name]
    known = "; ".join([*names, "circuit-tracer (config.yaml and layer_0.safetensors, ...)"])
    return UsageError(f"{path} is no SAE of a known tool; known are {known}.")

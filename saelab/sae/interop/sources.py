"""Where an SAE's files are: at a path, or on the hub under one of three kinds of names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from saelab.clients.hub import fetch, listed
from saelab.config import UsageError
from saelab.sae.interop.detect import DIRECTORIES, read_foreign
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.hints import Hints
from saelab.sae.interop.llama_scope import SETTINGS_FILE
from saelab.sae.interop.llama_scope import WEIGHTS as SCOPE_WEIGHTS
from saelab.sae.interop.releases import Known, find_release
from saelab.sae.interop.sae_lens_releases import SAELENS, WEIGHTS, find_in_sae_lens

HUB = "hf:"
OF_LAYERS = re.compile(r"(params_layer|W_enc|W_dec)_\d{1,4}\.safetensors")
"""Files of a cross-layer transcoder, all of which are needed."""
HUB_NAME = re.compile(r"hf:([^/\s]+/[^/\s]+)(?:/(.*))?")
SETTINGS = (".json", ".yaml")
LARGEST_SETTINGS = 2**20


@dataclass(frozen=True)
class Located:
    """An SAE's files on this machine.

    Attributes:
        path: the file or directory to read.
        known: what is known of it beside its files; None of a plain path.
        origin: where it came from, with the commit.
    """

    path: Path
    known: Known | None
    origin: str


def locate(source: str, *, folder: Path | None = None, revision: str | None = None) -> Located:
    """The files that `source` names: fetched, or taken from `folder`, which has the same files.

    Raises:
        UsageError: nothing has this name, a file is missing, or it cannot be fetched.
    """
    if not source:
        raise UsageError("The source of the SAE is empty; name a file, a directory or a release.")
    if Path(source).exists():
        _refuse_options(source, folder, revision)
        return Located(Path(source), None, source)
    if source.startswith(HUB):
        known = _on_the_hub(source, folder, revision)
    elif source.startswith(SAELENS):
        known = find_in_sae_lens(source)
        if not known.files:
            known = _listed(known, PurePosixPath(known.read), revision, folder)
    elif _looks_like_a_path(source):
        raise UsageError(f"{source} does not exist.")
    else:
        known = find_release(source)
    if folder is not None:
        return _from(folder, known)
    fetched = fetch(known.repo, known.files, optional=known.optional, revision=revision)
    origin = f"{HUB}{known.repo}/{known.read}@{fetched.commit}"
    named = "" if source.startswith(HUB) else f"{source}, "
    return Located(fetched.folder / known.read, known, named + origin)


def read_located(located: Located, hints: Hints) -> ForeignSAE:
    """The SAE, with what is known of it where its file says nothing.

    Raises:
        UsageError: as for `read_foreign`, or what is known contradicts the file.
    """
    known = located.known
    if known is None:
        return read_foreign(located.path, hints)
    transcoder = known.transcoder if hints.transcoder is None else hints.transcoder
    sae = read_foreign(located.path, Hints(known.k if hints.k is None else hints.k, transcoder))
    if known.norm is not None and sae.row_norm not in (None, known.norm):
        raise UsageError(f"{known.name} is known for {known.norm}, its file says {sae.row_norm}.")
    if known.scale is not None and sae.unscaled:
        sae = replace(sae.for_inputs_times(known.scale), unscaled=False)
    return replace(
        sae,
        row_norm=sae.row_norm or known.norm,
        model=known.model or sae.model,
        hook=sae.hook or known.site,
        hook_out=(sae.hook_out or known.target) if sae.transcoder else None,
    )


def _refuse_options(source: str, folder: Path | None, revision: str | None) -> None:
    for option, value in (("--from", folder), ("--revision", revision)):
        if value is not None:
            raise UsageError(
                f"{source} is a path, which {option} says nothing about; leave it out."
            )


def _looks_like_a_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.endswith((*WEIGHTS, *SETTINGS))


def _from(folder: Path, known: Known) -> Located:
    if not folder.is_dir():
        raise UsageError(f"--from {folder} is no directory.")
    if missing := [name for name in known.files if not (folder / name).is_file()]:
        raise UsageError(
            f"--from {folder} has no {missing[0]}; {known.name} needs the files of "
            f"{known.repo} under their own paths."
        )
    return Located(folder / known.read, known, f"{known.name}: {folder / known.read}")


def _on_the_hub(source: str, folder: Path | None, revision: str | None) -> Known:
    found = HUB_NAME.fullmatch(source)
    if found is None:
        raise UsageError(f"{source} is not hf:owner/repo or hf:owner/repo/path.")
    path = PurePosixPath((found[2] or "").strip("/"))
    if ".." in path.parts:
        raise UsageError(f"{source} leaves its repository; name a path within it.")
    return _listed(Known(source, found[1]), path, revision, folder)


def _listed(known: Known, path: PurePosixPath, revision: str | None, given: Path | None) -> Known:
    """The files beside which, or in which, an SAE at `path` of a repository is."""

    def within(folder: PurePosixPath) -> dict[str, int]:
        at = "" if folder == PurePosixPath() else str(folder)
        if given is None:
            return listed(known.repo, at, revision=revision)
        files = (given / at).iterdir() if (given / at).is_dir() else ()
        return {str(f.relative_to(given)): f.stat().st_size for f in files if f.is_file()}

    # A folder's name may end as a file's does.
    beside = within(path.parent) if path.suffix in WEIGHTS else {}
    if str(path) in beside:
        settings = _settings(beside)
        return replace(known, files=(str(path),), optional=settings, read=str(path))
    sizes = within(path)
    names = {PurePosixPath(name).name: name for name in sizes}
    if SETTINGS_FILE in names:
        weights = str(path / SCOPE_WEIGHTS)
        return replace(known, files=(names[SETTINGS_FILE], weights), read=str(path))
    marked = [names[name] for name in DIRECTORIES if name in names]
    weights = marked or [name for name in sizes if name.endswith(WEIGHTS)]
    if weights and all(OF_LAYERS.fullmatch(PurePosixPath(name).name) for name in weights):
        whole = (*weights, *_settings(sizes))
        return replace(known, files=whole, read=str(path))
    if len(weights) != 1:
        some = f", such as {weights[0]}" if weights else ""
        raise UsageError(
            f"{known.name}: {path} holds {len(weights)} files of weights{some}; name the file or "
            "the folder of one SAE."
        )
    above = () if path == PurePosixPath() else (str(path.parent / "config.json"),)
    read = str(path) if marked else weights[0]
    return replace(known, files=(weights[0],), optional=(*_settings(sizes), *above), read=read)


def _settings(sizes: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(
        n for n, size in sizes.items() if n.endswith(SETTINGS) and size <= LARGEST_SETTINGS
    )

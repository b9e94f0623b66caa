"""Files of repositories on the Hugging Face Hub, by its own client: its cache, resumed, pinned.

The client's environment variables hold: HF_HOME or HF_HUB_CACHE (where files are kept), HF_TOKEN,
HF_ENDPOINT, HF_HUB_OFFLINE.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.config import UsageError
from saelab.console import note

CHUNK = 1 << 24
NOT_FETCHED = (
    "{repo} could not be fetched ({why}); no half file is left, and the same command tries again."
)
COMMIT_LENGTH = 40
"""A snapshot's folder is named after its commit, in hexadecimal."""


@dataclass(frozen=True)
class Fetched:
    """Files of one commit of a repository.

    Attributes:
        folder: where they lie, under their paths in the repository.
        commit: the commit, which pins them.
    """

    folder: Path
    commit: str


def fetch(
    repo: str, files: Sequence[str], *, optional: Sequence[str] = (), revision: str | None = None
) -> Fetched:
    """The files of a repository, from the cache or the hub, all of one commit.

    A connection that breaks is continued where it broke, several times; then nothing of the file
    is left. Each file is compared with the digest by which the hub names it, and removed if it
    differs.

    Args:
        repo: `owner/name`.
        files: paths in the repository; at least one.
        optional: paths that need not exist.
        revision: a branch, tag or commit; default: main.

    Raises:
        UsageError: the repository, the revision or a file does not exist or needs a licence to be
            accepted; the hub cannot be reached, refuses, or gives other bytes than it named.
    """
    client = hub_client()
    with in_sentences(repo, revision):
        first = _one(client, repo, files[0], revision)
        folder = first
        for _ in Path(files[0]).parts:
            folder = folder.parent
        commit = folder.name
        pinned = commit if len(commit) == COMMIT_LENGTH else revision
        for name in files[1:]:
            _one(client, repo, name, pinned)
        for name in optional:
            with contextlib.suppress(client.errors.EntryNotFoundError):
                _one(client, repo, name, pinned, told=False)
    return Fetched(folder, commit)


def listed(repo: str, folder: str, *, revision: str | None = None) -> dict[str, int]:
    """The files directly in a folder of a repository, by their paths, with their sizes in bytes.

    Raises:
        UsageError: as for `fetch`. Offline, only what the cache has is listed.
    """
    client = hub_client()
    with in_sentences(repo, revision):
        if client.constants.HF_HUB_OFFLINE:
            return _cached(client, repo, folder, revision)
        found = client.HfApi().list_repo_tree(repo, folder or None, revision=revision)
        return {each.path: each.size for each in found if hasattr(each, "size")}


def _cached(client: Any, repo: str, folder: str, revision: str | None) -> dict[str, int]:  # noqa: ANN401
    kept = Path(client.constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    ref = kept / "refs" / (revision or "main")
    commit = ref.read_text() if ref.is_file() else revision or ""
    root = kept / "snapshots" / commit
    if not commit or not (root / folder).is_dir():
        raise UsageError(
            f"{repo} is not in the cache ({kept.parent}), and HF_HUB_OFFLINE forbids to fetch it."
        )
    files = [each for each in (root / folder).iterdir() if each.is_file()]
    return {str(each.relative_to(root)): each.stat().st_size for each in files}


def hub_client() -> Any:  # noqa: ANN401 - a module
    """The hub's client.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise UsageError(
            "The hub is reached with huggingface_hub: pip install 'saelab[hub]'; without it, "
            "`import` takes --from with a directory of the same files, and `push` --dry-run."
        ) from None
    return huggingface_hub


def _one(
    client: Any,  # noqa: ANN401 - a module
    repo: str,
    name: str,
    revision: str | None,
    *,
    told: bool = True,
) -> Path:
    if told and client.try_to_load_from_cache(repo, name, revision=revision) is None:
        note(f"fetching {repo}/{name} into {client.constants.HF_HUB_CACHE}")
    path = Path(client.hf_hub_download(repo, name, revision=revision))
    _check_digest(path, repo, name)
    return path


def _check_digest(path: Path, repo: str, name: str) -> None:
    """Compare a file with the name of its blob, which is its digest; remove it if it differs.

    A blob of git's large file storage is named by its SHA-256, a smaller one by git's SHA-1.
    """
    blob = path.resolve()
    if len(blob.name) == 64:
        digest = hashlib.sha256()
    elif len(blob.name) == 40:
        digest = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    else:  # a cache without links, which keeps no digests
        return
    with blob.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    if digest.hexdigest() != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise UsageError(
            f"{repo}/{name} arrived with other bytes than the hub named (digest "
            f"{digest.hexdigest()[:12]}, not {blob.name[:12]}); it was removed, so fetch it again."
        )


@contextlib.contextmanager
def in_sentences(
    repo: str, revision: str | None = None, *, failed: str = NOT_FETCHED
) -> Iterator[None]:
    """Say in one sentence what the client reports in many.

    Args:
        repo: the repository that is spoken of.
        revision: the revision that was asked for.
        failed: what a broken connection means, with `{repo}` and `{why}`.
    """
    from huggingface_hub import errors

    try:
        yield
    except UsageError:
        raise
    except errors.LocalEntryNotFoundError as error:
        raise UsageError(_out_of_reach(repo, error)) from None
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        named = _named_wrongly(repo, revision, error)
        raise UsageError(named or _refused(repo, error)) from None
    except OSError as error:
        if error.errno is not None:
            raise  # a full disk, which is told as such
        raise UsageError(failed.format(repo=repo, why=_told(_first_cause(error)))) from None
    except Exception as error:  # noqa: BLE001 - the connection's errors differ by version
        raise UsageError(failed.format(repo=repo, why=_told(_first_cause(error)))) from None


def _named_wrongly(repo: str, revision: str | None, error: Exception) -> str | None:
    """What does not exist or is not given to everybody; None if this is not the reason."""
    from huggingface_hub import errors

    file = _path_of(error, repo) or "or folder of that name"
    at = f" at {revision}" if revision else ""
    # A subclass stands before its base.
    for kind, sentence in (
        (errors.HFValidationError, f"{repo!r} is no name of a repository; owner/name is."),
        (
            errors.GatedRepoError,
            f"{repo} gives its files only to accounts that accepted its licence; accept it on the "
            "hub, and set HF_TOKEN.",
        ),
        (
            errors.RepositoryNotFoundError,
            f"There is no repository {repo}, or HF_TOKEN may not read it.",
        ),
        (errors.RevisionNotFoundError, f"{repo} has no revision {revision}."),
        (errors.EntryNotFoundError, f"{repo}{at} has no file {file}."),
    ):
        if isinstance(error, kind):
            return sentence
    return None


def _out_of_reach(repo: str, error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"{repo} is not whole in the cache, and HF_HUB_OFFLINE forbids to fetch it."
    cause = _first_cause(error)
    if getattr(cause, "response", None) is not None:
        return _refused(repo, cause)
    return (
        f"{repo} is not whole in the cache, and {constants.ENDPOINT} cannot be reached "
        f"({_told(cause)})."
    )


def _refused(repo: str, error: Any) -> str:  # noqa: ANN401 - the client's, of several versions
    status = getattr(error.response, "status_code", 0)
    if status == 429:
        wait = error.response.headers.get("Retry-After", "")
        after = f" for {wait} s" if wait.isdigit() else " for some minutes"
        return f"The hub refuses more requests{after}; wait, or set HF_TOKEN for a higher limit."
    if status in (401, 403):
        return (
            f"The hub does not let this HF_TOKEN do that with {repo} ({status}); give one that may "
            "write there."
        )
    return f"The hub answered {status} when asked for {repo}; try again later."


def _path_of(error: Exception, repo: str) -> str:
    """The path in the address of what was not found."""
    url = str(getattr(getattr(error, "response", None), "url", ""))
    _, _, path = url.partition(f"{repo}/")
    parts = path.split("/")
    return "/".join(parts[2:]) if parts[:1] == ["resolve"] else ""


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _told(error: BaseException) -> str:
    """An error's text on one line."""
    text = " ".join(str(error).split())
    return text[:120].rstrip(". ") or type(error).__name__

"""Writing a folder to a repository on the Hugging Face Hub, as one commit.

The token is read from the environment (HF_TOKEN), given to the client, and written nowhere.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from saelab.clients.hub import hub_client, in_sentences
from saelab.config import UsageError
from saelab.console import in_bytes, note

TOKEN = "HF_TOKEN"
NOT_WRITTEN = (
    "{repo} could not be written ({why}); nothing was committed, and the same command tries again."
)
OWN_FILES = (".gitattributes",)
"""What the hub itself puts into a new repository."""


@dataclass(frozen=True)
class Pushed:
    """A commit on the hub.

    Attributes:
        url: the repository's page.
        commit: the commit, in hexadecimal.
        created: whether the repository is new.
    """

    url: str
    commit: str
    created: bool


def check_token() -> str:
    """The token of the environment.

    Raises:
        UsageError: it has none.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise UsageError(
            f"{TOKEN} is not set; put a token that may write to the repository there, or give "
            "--dry-run and --out to write the folder only."
        )
    return token


def push(
    files: Mapping[str, Path], repo: str, *, message: str, private: bool = True, replace: bool
) -> Pushed:
    """Commit files to a repository, which is created if there is none.

    Either all of them arrive, in one commit, or nothing changes but that an empty repository may
    be there. The visibility of a repository that exists stays.

    Args:
        files: the files by their paths in the repository.
        repo: `owner/name`.
        message: what the commit says.
        private: whether a new repository is private.
        replace: whether files may be committed beside or over others; earlier versions stay in the
            repository's history.

    Raises:
        UsageError: there is no token, or it may not write there; the repository holds other files
            and `replace` is false; the hub cannot be reached, or refuses.
    """
    client, token = hub_client(), check_token()
    api = client.HfApi(token=token, endpoint=client.constants.ENDPOINT)
    with in_sentences(repo, failed=NOT_WRITTEN):
        created = not api.repo_exists(repo)
        there = set() if created else set(api.list_repo_files(repo))
        if (others := there - set(OWN_FILES)) and not replace:
            raise UsageError(
                f"{repo} holds {len(others)} files already, such as {min(others)}; give --replace "
                "to commit over them (earlier versions stay in its history), or another name."
            )
        total = sum(path.stat().st_size for path in files.values())
        note(f"sending {len(files)} files, {in_bytes(total)}, to {api.endpoint}/{repo}")
        if created:
            api.create_repo(repo, private=private)
        done = api.create_commit(
            repo,
            [client.CommitOperationAdd(name, str(path)) for name, path in files.items()],
            commit_message=message,
        )
    return Pushed(f"{api.endpoint}/{repo}", done.oid, created)

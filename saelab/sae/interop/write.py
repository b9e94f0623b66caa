"""Writing the files of another tool into a new directory."""

from collections.abc import Mapping
from pathlib import Path

from saelab.config import UsageError
from saelab.files import atomic_write
from saelab.lock import writing


def write_new(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write an SAE's files by their names, in this order.

    Files of the same export may be there already, e.g. if it was interrupted.

    Raises:
        UsageError: `directory` already holds another SAE, or cannot be written to.
    """
    with writing(directory):
        for name, data in files.items():
            if (directory / name).exists() and (directory / name).read_bytes() != data:
                raise UsageError(f"{directory} already holds an SAE; give a new directory.")
        for name, data in files.items():
            atomic_write(directory / name, data)

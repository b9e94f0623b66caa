"""How a file was made: versions, machine and command line, recorded beside every result."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("saelab", "torch", "transformer-lens", "transformers", "h5py", "numpy")
SCHEMA_VERSION = 1


def provenance(**facts: object) -> dict[str, object]:
    """A JSON-ready record of this process, with `facts` (device, digests, seeds) added."""
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "commit": commit(),
        **facts,
    }


def version_of(package: str) -> str | None:
    """The version of a package; None if it is not installed, e.g. run from its source."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The source tree's commit, with `+dirty` if it has changes; None if installed from a wheel."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+dirty", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()

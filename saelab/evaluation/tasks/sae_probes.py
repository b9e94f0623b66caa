"""The tasks of the package sae-probes, read from where it is installed (arXiv 2502.16681).

The wheel carries its texts, so nothing is downloaded. Only its files are read: the package itself,
which needs TransformerLens 3, is not imported. The texts keep their own licences.
"""

import importlib.util
import io
import re
from collections.abc import Sequence
from pathlib import Path

from saelab.config import UsageError
from saelab.evaluation.tasks.data import LabelledTexts, csv_rows, labelled

NAME = "sae-probes"
MOST_BYTES = 2**28
"""Most bytes of an unpacked table; the largest has 40 MB."""
MASTER = "probing_datasets_MASTER.csv.zst"
BINARY = "Binary Classification"


def package_data() -> Path:
    """The directory of the installed package's tables.

    Raises:
        UsageError: the package is not installed, or has no tables.
    """
    spec = importlib.util.find_spec("sae_probes")
    if spec is None or spec.origin is None:
        raise UsageError(
            f"{NAME} is not installed; its tables come with it: pip install --no-deps {NAME} (its "
            "own requirements do not fit saelab's, and reading needs none of them)."
        )
    data = Path(spec.origin).parent / "data"
    if not (data / MASTER).is_file():
        raise UsageError(
            f"{data} has no {MASTER}: this version of {NAME} comes without its texts; install "
            "version 0.4.2."
        )
    return data


def task_names(data: Path) -> list[str]:
    """The binary tasks, in the package's order: `5_hist_fig_ismale`, ..."""
    table = csv_rows(_unpacked(data / MASTER), data / MASTER)
    files = [row["Dataset save name"] for _, row in table if row.get("Data type") == BINARY]
    return [Path(file).name.removesuffix(".csv") for file in files]


def other_names(data: Path) -> list[str]:
    """The tables that are no binary tasks: several classes, or numbers."""
    found = sorted(path.name.removesuffix(".csv.zst") for path in _tables(data))
    binary = set(task_names(data))
    return [name for name in found if name not in binary]


def read_task(data: Path, name: str) -> LabelledTexts:
    """A table by its name, with or without the number in front.

    Raises:
        UsageError: there is no such table, or it is damaged.
    """
    files = {path.name.removesuffix(".csv.zst"): path for path in _tables(data)}
    bare = {re.sub(r"^\d+_", "", known): path for known, path in files.items()}
    path = files.get(name) or bare.get(name)
    if path is None:
        raise UsageError(
            f"{NAME} has no task {name!r}; it has {', '.join(task_names(data)[:3])}, ... "
            f"({len(files)} in {data / 'cleaned_data'})."
        )
    rows = csv_rows(_unpacked(path), path)
    # A prompt or target without anything in it is what pandas reads as missing.
    whole = ((at, row) for at, row in rows if row.get("prompt") and row.get("target"))
    return labelled(path.name.removesuffix(".csv.zst"), whole, "prompt", ["target"])


def _tables(data: Path) -> Sequence[Path]:
    return list((data / "cleaned_data").glob("*.csv.zst"))


def _unpacked(path: Path) -> bytes:
    # Python knows zstd from 3.14 on.
    import pyarrow

    out = io.BytesIO()
    try:
        with pyarrow.input_stream(path, compression="zstd") as file:
            while part := file.read(2**22):
                out.write(part)
                if out.tell() > MOST_BYTES:
                    raise UsageError(f"{path} unpacks to more than {MOST_BYTES:,} bytes.")
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{path} is damaged: {str(error).splitlines()[0][:100]}.") from None
    return out.getvalue()

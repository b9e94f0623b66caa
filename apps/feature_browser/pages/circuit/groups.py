"""Supernodes: named groups of a graph's nodes, kept in a small JSON file beside the graph.

Pins are in the address, so Back undoes them and links share them. Group names must outlive this,
and a new computation of the graph. So groups name nodes as the address does, and are kept in
circuits/groups/NAME.json:

    format   "saelab-circuit-groups/1"
    groups   by label, the names of the nodes

Every change reads the file, changes one group, and replaces the whole file, under a lock that other
processes respect.
"""

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from feature_browser.data.reading import stamp
from saelab.config import UsageError, first_problem
from saelab.formats.json_file import read_sealed_json, write_sealed_json

FORMAT = "saelab-circuit-groups/1"
LONGEST_LABEL, MOST_GROUPS = 80, 200
Groups = dict[str, list[str]]


def groups_path(graph: Path) -> Path:
    """Path of a graph's groups."""
    return graph.parent / "groups" / f"{graph.stem}.json"


def read_groups(graph: Path) -> Groups:
    """The groups of a graph by label; empty if there are none.

    Raises:
        UsageError: the file is damaged or of another version.
    """
    path = groups_path(graph)
    return _parsed(path) if stamp(path) else {}


def save_group(graph: Path, label: str, nodes: Sequence[str]) -> str:
    """Save these nodes under a label, replacing its old ones; returns the label as saved.

    Raises:
        UsageError: the label is empty or too long, there are no nodes or too many groups, or the
            directory cannot be written.
    """
    label = " ".join(label.split())
    if not label or len(label) > LONGEST_LABEL:
        raise UsageError(
            f"A label has 1 to {LONGEST_LABEL} characters; got {len(label)}. Give another."
        )
    if not nodes:
        raise UsageError("Nothing is pinned; pin the nodes that belong together first.")

    def add(groups: Groups) -> None:
        if len(groups) >= MOST_GROUPS and label not in groups:
            raise UsageError(
                f"This graph has {len(groups)} supernodes, as many as it can; remove one first."
            )
        groups[label] = list(nodes)

    _change(graph, add)
    return label


def remove_group(graph: Path, label: str) -> None:
    """Remove a label, if it exists.

    Raises:
        UsageError: the directory cannot be written.
    """

    def remove(groups: Groups) -> None:
        groups.pop(label, None)

    _change(graph, remove)


def _change(graph: Path, change: Callable[[Groups], None]) -> None:
    path = groups_path(graph)
    try:
        path.parent.mkdir(exist_ok=True)
        with _locked(path):
            groups = read_groups(graph)
            change(groups)
            write_sealed_json(path, {"format": FORMAT, "groups": groups})
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}); the pins in the address are all there "
            "is until the directory is writable."
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _parsed(path: Path) -> Groups:
    values = read_sealed_json(path)
    if values.get("format") != FORMAT:
        raise UsageError(f"{path} is not a file of supernodes of this version ({FORMAT}).")
    try:
        return TypeAdapter(Groups).validate_python(values.get("groups"), strict=True)
    except ValidationError as error:
        raise UsageError(f"{path} is not a file of supernodes: {first_problem(error)}.") from error

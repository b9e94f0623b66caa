"""Prints where the arrays of an HDF5 file are: `python hdf5_without_index.py FILE`.

It runs as a separate process, since libhdf5 loops or allocates gigabytes on some damaged files; it
gets two seconds of a core and half a gigabyte. It imports nothing of saelab, so that it starts at
once. It prints the index that `hdf5_file.py` describes, without checksums.
"""

import json
import resource
import sys
from collections.abc import Iterator

import h5py

MARK = "index_follows"
"""Root attribute of files that have an index after them."""
SECONDS = 2
MEMORY = 2**29
MAX_ARRAYS = 4096
MAX_FACTS_BYTES = 2**26


def main(path: str) -> None:
    """Print the index."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    limit = int(used) + 1 + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:  # noqa: PTH123 - pathlib takes time to import
            pages = int(file.read().split()[0])
        memory = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with h5py.File(path, "r", locking=False) as h5:
        if MARK in h5.attrs:
            raise ValueError("it is cut off: the index at its end is missing")
        arrays = {}
        for name, dataset in _datasets(h5):
            if len(arrays) == MAX_ARRAYS:
                raise ValueError(f"it has more than {MAX_ARRAYS} datasets")
            arrays[name] = _entry(name, dataset)
        json.dump({"facts": json.loads(_facts(h5)), "arrays": arrays}, sys.stdout)


def _datasets(h5: h5py.File) -> Iterator[tuple[str, object]]:
    """Every dataset in the root's groups; links out of the file are not followed."""
    for group_name in map(str, h5):
        group = _hard(h5, group_name)
        if group_name == "facts":
            continue
        if not isinstance(group, h5py.Group):
            raise ValueError(f"{group_name} is not a group")
        for name in map(str, group):
            yield f"{group_name}/{name}", _hard(group, name)


def _hard(parent: h5py.Group, name: str) -> object:
    if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link")
    return parent[name]


def _facts(h5: h5py.File) -> str:
    """The JSON text in the root's attribute or in a dataset."""
    text: object = None
    if "facts" in h5.attrs:
        text = h5.attrs["facts"]
    elif "facts" in h5:
        dataset = _hard(h5, "facts")
        if not isinstance(dataset, h5py.Dataset) or dataset.shape != ():
            raise ValueError("its facts are not one text")
        if not (dataset.chunks or dataset.external or dataset.is_virtual):
            text = dataset[()]
    text = text.decode() if isinstance(text, bytes) else text
    if not isinstance(text, str) or len(text) > MAX_FACTS_BYTES:
        raise ValueError("it says no facts, or too long ones")
    return text


def _entry(name: str, dataset: object) -> dict[str, object]:
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "iuf":
        raise ValueError(f"{name} is not a numeric dataset")
    offset = dataset.id.get_offset()
    if dataset.size and (offset is None or dataset.external or dataset.is_virtual):
        raise ValueError(f"{name} is not stored contiguously in the file")
    shape = [int(n) for n in dataset.shape]
    return {"dtype": dataset.dtype.str, "shape": shape, "offset": int(offset or 0)}


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:  # noqa: BLE001 - a damaged file can provoke any of them
        lines = str(error).splitlines() or [type(error).__name__]
        print(lines[0][:200], file=sys.stderr)  # noqa: T201
        sys.exit(1)

"""Damage to HDF5 files that leaves them HDF5: what links, shapes and storage may say."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def datasets(h5: h5py.File) -> list[str]:
    """The names of all datasets that can be read."""
    found: list[str] = []
    h5.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def _of(h5: h5py.File, name: str) -> h5py.Dataset:
    found = h5[name]
    assert isinstance(found, h5py.Dataset)
    return found


def plain_copy(source: Path, target: Path) -> None:
    """The same datasets and attributes in a file that nothing but HDF5 wrote."""
    with h5py.File(source, "r", locking=False) as old, h5py.File(target, "w") as new:
        for name, value in old.attrs.items():
            if name != "index_follows":
                new.attrs[name] = value
        for name in datasets(old):
            new.create_dataset(name, data=_of(old, name)[()])


def _replace(h5: h5py.File, name: str, make: Callable[[], Any]) -> None:
    del h5[name]
    made = make()
    if made is not None and name not in h5:
        h5[name] = made


def _soft(h5: h5py.File, name: str, draw: random.Random) -> None:
    other = draw.choice([f"/{name}", "/nowhere", "/" + draw.choice(datasets(h5))])
    _replace(h5, name, lambda: h5py.SoftLink(other))


def _external(h5: h5py.File, name: str, draw: random.Random) -> None:
    place = draw.choice(["/etc/passwd", "other.h5", h5.filename, "/dev/zero"])
    _replace(h5, name, lambda: h5py.ExternalLink(place, f"/{name}"))


def _loop(h5: h5py.File, name: str, draw: random.Random) -> None:
    _replace(
        h5, name, lambda: h5["/"] if draw.random() < 0.5 else h5[name.rpartition("/")[0] or "/"]
    )


def _storage(h5: h5py.File, name: str, draw: random.Random) -> None:
    shape, dtype = _of(h5, name).shape, _of(h5, name).dtype
    place = draw.choice(["/etc/passwd", "/dev/zero", "/dev/urandom", "nowhere"])
    n_bytes = max(8, int(np.prod(shape)) * dtype.itemsize)
    del h5[name]
    h5.create_dataset(name, shape, dtype, external=[(place, 0, n_bytes)])


def _virtual(h5: h5py.File, name: str, draw: random.Random) -> None:
    del draw
    shape, dtype = _of(h5, name).shape, _of(h5, name).dtype
    layout = h5py.VirtualLayout(shape or (1,), dtype)
    layout[...] = h5py.VirtualSource("/etc/passwd", "x", shape or (1,))
    del h5[name]
    h5.create_virtual_dataset(name, layout)


def _huge(h5: h5py.File, name: str, draw: random.Random) -> None:
    old = _of(h5, name)
    shape = draw.choice(
        [(2**40,), (2**31, 2**10), (2**50, 8), *([(2**33, *old.shape[1:])] if old.shape else [])]
    )
    dtype = old.dtype
    del h5[name]
    h5.create_dataset(name, shape, dtype, chunks=tuple(min(n, 64) for n in shape))


def _bomb(h5: h5py.File, name: str, draw: random.Random) -> None:
    """A megabyte that unpacks to hundreds."""
    dtype = _of(h5, name).dtype
    del h5[name]
    shape = (2**28 // dtype.itemsize,)
    made = h5.create_dataset(
        name, shape, dtype, chunks=(2**24 // dtype.itemsize,), compression="gzip"
    )
    if draw.random() < 0.5:
        made[:] = 0


def _kind(h5: h5py.File, name: str, draw: random.Random) -> None:
    old = _of(h5, name)
    shape = old.shape
    dtype: Any = draw.choice(["S8", h5py.string_dtype(), "c8", "b1", np.dtype([("a", "f4")]), "f2",
                              "i1", "f8", "u8", "V4"])  # fmt: skip
    del h5[name]
    h5.create_dataset(name, shape, dtype)


def _shape(h5: h5py.File, name: str, draw: random.Random) -> None:
    values = _of(h5, name)[()]
    flat = np.atleast_1d(values).ravel()
    turned = values.T if values.ndim > 1 else flat[::-1]
    one = flat[:1].reshape(()) if len(flat) else flat
    made = draw.choice([flat[:-1], flat[:0], flat, np.repeat(flat, 2), one, turned, flat[None]])
    del h5[name]
    h5.create_dataset(name, data=made)


def _values(h5: h5py.File, name: str, draw: random.Random) -> None:
    old = _of(h5, name)
    if old.dtype.kind not in "iuf" or not old.size:
        return
    values = old[()]
    flat = np.atleast_1d(values).ravel()
    if old.dtype.kind == "f":
        new: Any = draw.choice([np.nan, np.inf, -np.inf, 0.0, -1.0])
    else:
        limits = np.iinfo(old.dtype)
        new = draw.choice([limits.min, limits.max, 0, min(limits.max, 10**6), len(flat)])
    n = draw.choice([1, len(flat)])
    start = draw.randrange(len(flat) - n + 1)
    flat[start : start + n] = new
    shape = old.shape
    del h5[name]
    h5.create_dataset(name, data=flat.reshape(shape))


def _remove(h5: h5py.File, name: str, draw: random.Random) -> None:
    del h5[name if draw.random() < 0.7 else name.split("/")[0]]


def _facts(h5: h5py.File, name: str, draw: random.Random) -> None:
    from fuzz.mutations import mutated

    del name
    if "facts" in h5.attrs:
        h5.attrs["facts"] = _short(mutated(json.loads(str(h5.attrs["facts"])), draw)[0])
    elif "facts" in h5 and isinstance(h5["facts"], h5py.Dataset):
        text = mutated(json.loads(_of(h5, "facts")[()]), draw)[0]
        del h5["facts"]
        h5["facts"] = text.encode("utf-8", errors="replace").decode()


def _short(text: str) -> str:
    """An attribute holds at most 64 KiB."""
    return text[:60_000]


WAYS: dict[str, Callable[[h5py.File, str, random.Random], None]] = {
    "soft link": _soft, "external link": _external, "loop of links": _loop,
    "external storage": _storage, "virtual": _virtual, "huge shape": _huge, "bomb": _bomb,
    "kind": _kind, "shape": _shape, "values": _values, "remove": _remove, "facts": _facts,
}  # fmt: skip


def _damaged(way: str) -> Callable[[Path, random.Random], str]:
    def apply(path: Path, draw: random.Random) -> str:
        plain = path.with_suffix(".plain")
        plain_copy(path, plain)
        with h5py.File(plain, "r+") as h5:
            name = draw.choice(datasets(h5))
            WAYS[way](h5, name, draw)
        plain.replace(path)
        return f"of {name}"

    return apply


HDF5 = {way: _damaged(way) for way in WAYS}

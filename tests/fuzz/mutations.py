"""Damage to files: every kind is a function of the file and of a seeded generator."""

import copy
import json
import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from fuzz.hdf5_damage import HDF5

Damage = Callable[[Path, random.Random], str]
"""Damages the file at a path; returns in a few words what it did."""


def damages_of(path: Path) -> list[tuple[str, Damage]]:
    """What can be done to a file, by its kind; what knows the format is as likely as the rest."""
    known = {
        ".json": JSON, ".jsonl": JSON_LINES, ".safetensors": SAFETENSORS, ".h5": HDF5,
        ".sqlite": SQLITE,
    }.get(path.suffix, {})  # fmt: skip
    every = [*BYTES.items(), *PLACES.items()]
    return every + max(1, len(every) // max(1, len(known))) * list(known.items())


def damage(path: Path, seed: str) -> str:
    """Damage the file at `path` as the seed says; returns what was done."""
    draw = random.Random(seed)
    for _ in range(20):
        name, apply = draw.choice(damages_of(path))
        before = path.read_bytes()
        try:
            done = apply(path, draw)
        except NotHereError:
            path.write_bytes(before)
            continue
        if not path.is_file() or path.is_symlink() or _differs(path, before):
            return f"{name} {done}".strip()
    return f"truncate {_truncate(path, draw)}"


def _differs(path: Path, before: bytes) -> bool:
    return path.stat().st_size != len(before) or path.read_bytes() != before


class NotHereError(Exception):
    """This damage cannot be done to this file."""


# Bytes


def _bytes(change: Callable[[bytearray, random.Random], str]) -> Damage:
    def apply(path: Path, draw: random.Random) -> str:
        data = bytearray(path.read_bytes())
        if not data:
            raise NotHereError
        done = change(data, draw)
        path.write_bytes(data)
        return done

    return apply


def _at(data: bytearray, draw: random.Random) -> int:
    """A place, as often among the first kilobytes, where headers are, or the last, as elsewhere."""
    where = draw.random()
    if where < 0.4:
        return draw.randrange(min(len(data), 2048))
    if where < 0.6:
        return len(data) - 1 - draw.randrange(min(len(data), 512))
    return draw.randrange(len(data))


def _truncate(path: Path, draw: random.Random) -> str:
    size = path.stat().st_size
    to = draw.choice([size - 1, size // 2, draw.randrange(max(1, size)), min(size, 8)])
    os.truncate(path, max(0, to))
    return f"to {to} of {size}"


def _zero(data: bytearray, draw: random.Random) -> str:
    start, n = _at(data, draw), draw.choice([1, 8, 64, 512, 4096])
    n = min(n, len(data) - start)
    data[start : start + n] = bytes(n)
    return f"{n} at {start}"


def _flip(data: bytearray, draw: random.Random) -> str:
    places = [_at(data, draw) for _ in range(draw.choice([1, 1, 4, 32]))]
    for place in places:
        data[place] ^= 1 << draw.randrange(8)
    return f"bits at {places[:4]}"


def _insert(data: bytearray, draw: random.Random) -> str:
    start = _at(data, draw)
    data[start:start] = draw.choice([bytes(8), b"\xff" * 8, draw.randbytes(8)])
    return f"8 bytes at {start}"


def _delete(data: bytearray, draw: random.Random) -> str:
    start, n = _at(data, draw), draw.choice([1, 8, 100])
    del data[start : start + n]
    return f"{n} at {start}"


def _swap(data: bytearray, draw: random.Random) -> str:
    n = min(len(data) // 2, draw.choice([8, 64, 512]))
    a, b = sorted(draw.randrange(len(data) - n + 1) for _ in range(2))
    data[a : a + n], data[b : b + n] = data[b : b + n], data[a : a + n]
    return f"{n} at {a} and {b}"


def _number(data: bytearray, draw: random.Random) -> str:
    """A size of eight bytes somewhere in a header becomes an extreme one."""
    start = 8 * draw.randrange(max(1, min(len(data), 4096) // 8))
    value = draw.choice([2**64 - 1, 2**63, 2**62, 2**40, 2**32 - 1, 2**31, 1])
    data[start : start + 8] = struct.pack("<Q", value)
    return f"{value} at {start}"


BYTES: dict[str, Damage] = {
    "truncate": _truncate,
    "zero": _bytes(_zero),
    "flip": _bytes(_flip),
    "insert": _bytes(_insert),
    "delete": _bytes(_delete),
    "swap": _bytes(_swap),
    "number": _bytes(_number),
}

# What stands in the file's place


def _foreign(path: Path, draw: random.Random) -> str:
    root = next(parent for parent in path.parents if parent.name == "here")
    others = sorted(p for p in root.rglob("*") if p.is_file() and p != path)
    other = draw.choice(others)
    shutil.copyfile(other, path)
    return f"with {other.relative_to(root)}"


def _sibling(path: Path, draw: random.Random) -> str:
    root = next(parent for parent in path.parents if parent.name == "here")
    others = sorted(p for p in root.rglob(f"*{path.suffix}") if p.is_file() and p != path)
    if not others:
        raise NotHereError
    other = draw.choice(others)
    shutil.copyfile(other, path)
    return f"with {other.relative_to(root)}"


def _gone(make: Callable[[Path], object]) -> Damage:
    def apply(path: Path, draw: random.Random) -> str:
        del draw
        path.unlink()
        make(path)
        return ""

    return apply


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


PLACES: dict[str, Damage] = {
    "foreign": _foreign,
    "sibling": _sibling,
    "empty": _gone(Path.touch),
    "missing": _gone(lambda path: None),
    "directory": _gone(Path.mkdir),
    "pipe": _gone(os.mkfifo),
    "loop": _gone(lambda path: path.symlink_to(path)),
    "device": _gone(lambda path: path.symlink_to("/dev/zero")),
    "a terabyte of holes": _gone(_sparse),
}

# JSON

RAW = "@raw@"
"""Stands for text that the encoder would not write."""
RAW_TEXTS = {
    "digits": "1" + "0" * 400,
    "more digits": "7" * 6000,
    "exponent": "1e99999",
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "depth": "[" * 100_000 + "]" * 100_000,
    "depth of objects": '{"a":' * 3000 + "1" + "}" * 3000,
    "surrogate": '"\\ud800"',
    "control": '"\\u0000\\u202e\\n"',
    "long list": "[" + "0," * 1_000_000 + "0]",
    "long text": '"' + "a" * 3_000_000 + '"',
    "half": '{"a":',
}
VALUES: tuple[Any, ...] = (
    None, True, False, "", "text", "1", "../../../etc/passwd", "/dev/zero", 0, -1, 1, 2, 3.5, -0.0,
    1e300, 2**31, 2**53, 2**63, -(2**63), 10**9, 10**6, [], {}, [[]], [None], ["a"], {"a": 1},
    [1, [2, [3]]],
)  # fmt: skip


def _places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value is in a JSON document, at most 200 of a list."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value[:200]) if isinstance(
        value, list
    ) else ()  # fmt: skip
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


def mutated(document: Any, draw: random.Random) -> tuple[str, str]:
    """JSON text like `document` with one thing wrong, and what that is."""
    document = copy.deepcopy(document)
    if isinstance(document, dict) and draw.random() < 0.8:
        # A seal would tell of every other change; what is behind it is to be tested.
        document.pop("sha256", None)
    place = draw.choice(_places(document))
    what = draw.choice(["raw", "value", "value", "value", "remove", "extra", "twice"])
    raw = draw.choice(list(RAW_TEXTS))
    if not place:
        text = json.dumps(draw.choice(VALUES)) if what != "raw" else RAW_TEXTS[raw]
        return text, f"all of it: {text[:20]}"
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    done = _changed(parent, place[-1], what, draw)
    text = json.dumps(document, indent=draw.choice([None, 2]))
    instead = RAW_TEXTS[raw]
    if what == "twice" and isinstance(parent, dict):
        instead = f"1, {json.dumps(place[-1])}: 2"
    else:
        what += f" {raw}" if json.dumps(RAW) in text else done
    return text.replace(json.dumps(RAW), instead), f"{'.'.join(map(str, place))}: {what}"


def _changed(parent: Any, key: Any, what: str, draw: random.Random) -> str:
    """Change one entry of a list or object; returns to what."""
    if what == "value":
        parent[key] = draw.choice(VALUES)
        return f" {parent[key]!r}"
    if what == "remove":
        del parent[key]
    elif what == "extra" and isinstance(parent, dict):
        parent[draw.choice(["extra", "__class__", "", "a" * 300])] = draw.choice(VALUES)
    elif what == "extra":
        parent.append(draw.choice(VALUES))
    else:
        parent[key] = RAW
    return ""


def _json(path: Path, draw: random.Random) -> str:
    text, done = mutated(json.loads(path.read_bytes()), draw)
    path.write_text(text)
    return done


def _json_line(path: Path, draw: random.Random) -> str:
    lines = path.read_text().splitlines()
    number = draw.randrange(len(lines))
    lines[number], done = mutated(json.loads(lines[number]), draw)
    lines[number] = lines[number].replace("\n", " ")
    path.write_text("\n".join(lines) + "\n")
    return f"line {number}, {done}"


def _more_lines(path: Path, draw: random.Random) -> str:
    lines = path.read_text().splitlines()
    draw.shuffle(lines)
    path.write_text("\n".join(lines * draw.choice([2, 100])) + draw.choice(["", "\n", "\n\n\n"]))
    return "shuffled and repeated"


JSON: dict[str, Damage] = {"json": _json}
JSON_LINES: dict[str, Damage] = {"line": _json_line, "lines": _more_lines}

# safetensors


def _header(path: Path, draw: random.Random) -> str:
    """Damage to the header that leaves it JSON, mostly."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    meta = header.get("__metadata__", {})
    if draw.random() < 0.9:
        meta.pop("seal", None)
    names = [name for name in header if name != "__metadata__"]
    name = draw.choice(names)
    entry = header[name]
    what = draw.choice(["config", "config", "meta", "dtype", "shape", "offsets", "json", "rename"])
    done = f"{what} of {name}"
    if what == "config" and "config" in meta:
        meta["config"], inner = mutated(json.loads(meta["config"]), draw)
        done = f"config {inner}"
    elif what == "meta" and meta:
        key = draw.choice(list(meta))
        meta[key] = draw.choice(
            ["", "0", "-1", "1000000000", "1e9", "nan", "\x00", "None", "9" * 5000]
        )
        done = f"{key} is {meta[key][:20]!r}"
    elif what == "dtype":
        entry["dtype"] = draw.choice(["F16", "BF16", "I64", "F64", "BOOL", "F8_E4M3", "X", 3, None])
    elif what == "shape":
        entry["shape"] = draw.choice(
            [[], [0], [-1, 4], [2**62, 4], [2**31, 2**33], [1.5], "a", [1] * 40, [[1]]]
        )
    elif what == "offsets":
        entry["data_offsets"] = draw.choice(
            [[0, 4], [4, 0], [0, 2**62], [-4, 4], [1], None, [0, 0], [0, 1e9]]
        )
    elif what == "rename":
        header[draw.choice(["extra", "", "W_enc2", names[0]])] = header.pop(name)
    text = mutated(header, draw)[0] if what == "json" else json.dumps(header)
    raw = text.encode(errors="surrogatepass")
    stated = draw.choice([len(raw)] * 8 + [2**63, len(raw) * 2])
    path.write_bytes(struct.pack("<Q", stated) + raw + body)
    return done


def _body(path: Path, draw: random.Random) -> str:
    """Numbers that are none, in a file without a seal."""
    data = bytearray(path.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.get("__metadata__", {}).pop("seal", None)
    body = bytearray(data[8 + size :])
    word = draw.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", bytes(4)])
    n = draw.choice([1, len(body) // 4])
    start = 4 * draw.randrange(max(1, len(body) // 4 - n + 1))
    body[start : start + 4 * n] = word * n
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    return f"{n} times {word.hex()} at {start}"


SAFETENSORS: dict[str, Damage] = {"header": _header, "body": _body}

# SQLite

SCRIPTS = (
    "create trigger t after insert on edit begin delete from edit; end",
    "drop table edit; create view edit as with recursive n(i) as (select 1 union all select i + 1 "
    "from n) select i as id, '' as at, 0 as latent, 'label' as field, '' as value from n",
    "create table other (x)",
    "drop table edit",
    "alter table edit rename column value to other",
    "insert into edit (at, latent, field, value) values ('', 1, 'label', x'ff')",
    "insert into edit (at, latent, field, value) values ('', 1, 'label', cast(x'ff' as text))",
    "insert into edit (at, latent, field, value) values ('', 9223372036854775807, 'label', 'a')",
    "insert into edit (at, latent, field, value) values ('', 1, 'note', printf('%.*c', 1e6, 'a'))",
    "pragma ignore_check_constraints = on; insert into edit (at, latent, field, value) values "
    "('', -1, 'other', 'a')",
    "pragma ignore_check_constraints = on; insert into edit (at, latent, field, value) values "
    "('', 'one', 'label', 'a')",
    "pragma user_version = 99",
    "pragma user_version = -1",
    "pragma user_version = 0",
    "pragma journal_mode = wal",
    "with recursive n(i) as (select 1 union all select i + 1 from n limit 100000) insert into edit "
    "(at, latent, field, value) select '', i, 'label', 'x' from n",
)  # fmt: skip


def _sql(path: Path, draw: random.Random) -> str:
    script = draw.choice(SCRIPTS)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{script};")
        connection.commit()
    return script[:60]


SQLITE: dict[str, Damage] = {"sql": _sql}

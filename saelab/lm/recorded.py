"""Where the language model of a run is now."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saelab.config import UsageError
from saelab.formats.json_file import MAX_CONFIG_BYTES, read_object
from saelab.moved import now_at, places

SIZES = ("n_layers", "d_model", "d_vocab")


def name_now(facts: Mapping[str, Any], near: Sequence[Path] = ()) -> str:
    """The name under which a recorded model can be loaded.

    A checkpoint directory that is gone is looked for by its name (see `saelab.moved`), then among
    the directories there: the only one of the same architecture and sizes. Its digest is compared
    when it is loaded.
    """
    name = str(facts["name"])
    if not Path(name).is_absolute():
        return name
    if (found := now_at(Path(name), near)) is not None:
        return str(found)
    alike = {path.resolve() for place in places(near) for path in _checkpoints(place, facts)}
    return str(alike.pop()) if len(alike) == 1 else name


def _checkpoints(place: Path, facts: Mapping[str, Any]) -> list[Path]:
    try:
        files = sorted(place.glob("*/config.json"))
        return [file.parent for file in files if _is_alike(file, facts)]
    except OSError:
        return []


def _is_alike(file: Path, facts: Mapping[str, Any]) -> bool:
    if not any(file.parent.glob("*.safetensors")):
        return False
    try:
        config = read_object(file, most=MAX_CONFIG_BYTES)
    except UsageError:
        return False
    numbers = {value for value in config.values() if type(value) is int}
    named = config.get("architectures")
    return named == [facts.get("architecture")] and {facts.get(n) for n in SIZES} <= numbers

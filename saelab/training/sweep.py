"""A sweep: one JSON file that describes many trainings."""

import copy
import re
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from saelab.config import UsageError, first_problem
from saelab.formats.json_file import read_object
from saelab.training.config import TrainConfig

MAX_RUNS = 1000
KEYS = {"base", "grid", "runs"}


def read_sweep(path: Path) -> dict[str, TrainConfig]:
    """The configurations that a sweep file describes, by the name of their run.

        {
          "base": {"activations": "cache/tiny", "site": "blocks.2.hook_resid_post",
                   "n_tokens": 1000000, "sae": {"variant": "topk", "d_sae": 1024}},
          "grid": {"sae.k": [8, 16, 32], "seed": [0, 1]},
          "runs": {"wide": {"sae.d_sae": 4096, "sae.k": 16}}
        }

    Every combination of the grid's values changes the base and is a run, named after the values
    (k8-seed0). Every entry of `runs` changes the base and is a run under its own name. Dots reach
    into nested options.

    Raises:
        UsageError: the file is no sweep, or an option is wrong; the message names the run.
    """
    found = read_object(path)
    if not found.keys() <= KEYS:
        raise UsageError(f"{path} must be a JSON object with base, grid and runs, and no more.")
    base, grid, runs = (found.get(key, {}) for key in ("base", "grid", "runs"))
    for name, part in (("base", base), ("grid", grid), ("runs", runs)):
        if not isinstance(part, dict):
            raise UsageError(f"{path}: {name} must be an object.")
    changes = {**_grid(path, grid), **runs}
    if not changes:
        raise UsageError(f"{path} describes no run; give a grid, or runs.")
    if len(changes) > MAX_RUNS:
        raise UsageError(f"{path} describes {len(changes)} runs, more than {MAX_RUNS}.")
    return {name: _config(path, name, base, change) for name, change in changes.items()}


def _grid(path: Path, grid: dict[str, Any]) -> dict[str, dict[str, Any]]:
    for option, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: grid.{option} must be a list of values.")
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    named = {_name(values): values for values in combinations if values}
    if grid and len(named) < len(combinations):
        raise UsageError(f"{path}: two combinations of the grid would have the same name.")
    return named


def _name(values: dict[str, Any]) -> str:
    parts = [f"{option.rpartition('.')[2]}{value}" for option, value in values.items()]
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in parts)


def _config(path: Path, name: str, base: dict[str, Any], changes: Any) -> TrainConfig:  # noqa: ANN401
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        raise UsageError(f"{path}: {name!r} is no name for a run; use letters, digits, - _ and .")
    if not isinstance(changes, dict):
        raise UsageError(f"{path}: run {name} must be an object of options.")
    values = copy.deepcopy(base)
    for option, value in changes.items():
        *outer, last = option.split(".")
        place = values
        for key in outer:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise UsageError(f"{path}: run {name}: {option} reaches into what is no object.")
        place[last] = value
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: run {name}: {first_problem(error)}.") from error

"""A sweep: one JSON file that describes many trainings."""

import copy
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from saelab.activations.store import ActivationStore
from saelab.config import UsageError, first_problem, shortened
from saelab.formats.json_file import read_object
from saelab.sites import JOIN
from saelab.training.config import TrainConfig
from saelab.training.sets import RECIPES

MAX_RUNS = 1000
KEYS = {"base", "grid", "runs", "harvest", "recipe"}
SITES = ("site", "target_site")
LAYER, LAYERS, JOINED = "*", "layers", "joined"
MOST_LAYERS = 1000


def read_sweep(path: Path, **given: object) -> dict[str, TrainConfig]:
    """The configurations that a sweep file describes, by the name of their run.

        {
          "base": {"activations": "cache/tiny", "site": "blocks.2.hook_resid_post",
                   "n_tokens": 1000000, "sae": {"variant": "topk", "d_sae": 1024}},
          "grid": {"sae.k": [8, 16, 32], "seed": [0, 1]},
          "runs": {"wide": {"sae.d_sae": 4096, "sae.k": 16}}
        }

    Every combination of the grid's values changes the base and is a run, named after the values
    (k8-seed0). Every entry of `runs` changes the base and is a run under its own name. Dots reach
    into nested options. `given` options change the base.

    A `*` in a site stands for the number of a layer, and its run for one run per layer, NAME-LAYER:
    for every layer of which the store has the sites, or for those that `layers` lists.

        "runs": {
          "mlp": {"site": "blocks.*.ln2.hook_out", "target_site": "blocks.*.hook_mlp_out"},
          "attn": {"site": "blocks.*.attn.hook_z", "layers": [0, 5, 11]}
        }

    With "layers": "joined" it stands for all of them in one run, which reads the joint site.

    A `recipe` names the runs of a set (see `saelab.training.sets`), which `runs` may change.

        "recipe": "transcoders+attention", "runs": {"attention": {"sae.k": 24}}

    Raises:
        UsageError: the file is no sweep, or an option is wrong; the message names the run.
    """
    runs = {
        of_layer: _config(path, of_layer, own)
        for name, values in _options(path, given).items()
        for of_layer, own in _by_layer(path, name, values).items()
    }
    if len(runs) > MAX_RUNS:
        raise UsageError(f"{path} describes {len(runs)} runs, more than {MAX_RUNS}.")
    return runs


def read_harvest(path: Path) -> dict[str, Any] | None:
    """The options of the harvest by which a sweep makes its own store; None without one.

        {"harvest": {"model": "gpt2", "text": "corpus.txt", "n_tokens": 50000}, "base": ...}

    Raises:
        UsageError: the file is no sweep.
    """
    parts = _parts(path)
    found = parts.get("harvest")
    if found is not None and "activations" in parts.get("base", {}):
        raise UsageError(f"{path} names activations and a harvest that makes them; leave one out.")
    if found is not None and (more := sorted(found.keys() & {"sites", "out", "device"})):
        raise UsageError(
            f"{path}: harvest takes its sites from the runs, and --out and --device from the "
            f"command; leave {' and '.join(more)} out of it."
        )
    return found


def check_runs(path: Path, **given: object) -> None:
    """Refuse what is wrong with a sweep at any layer, before its store is made.

    Raises:
        UsageError: as for `read_sweep`.
    """
    for name, values in _options(path, given).items():
        _hooks(path, name, values)
        _listed(path, name, values)
        if values.pop(LAYERS, None) == JOINED and values.get("live"):
            raise UsageError(
                f"{path}: run {name} reads the sites of all layers, and --live feeds SAEs of one "
                "site; leave --live out."
            )
        try:
            _config(path, name, values).check()
        except UsageError as error:
            raise UsageError(f"Run {name}: {error}") from error


def sites_of(path: Path, n_layers: int) -> list[str]:
    """The sites of a sweep's runs, for a model of so many layers.

    Raises:
        UsageError: the file is no sweep.
    """
    found: dict[str, None] = {}
    for name, values in _options(path, {}).items():
        layers = [str(layer) for layer in _listed(path, name, values) or range(n_layers)]
        for hook in _hooks(path, name, values):
            found |= dict.fromkeys(hook.replace(LAYER, n) for n in layers)
    return list(found)


def read_recipe(path: Path) -> str | None:
    """The recipe that a sweep file names; None without one.

    Raises:
        UsageError: the file is no sweep, or there is no such recipe.
    """
    recipe = read_object(path).get("recipe")
    if recipe is not None and (not isinstance(recipe, str) or recipe not in RECIPES):
        known = ", ".join(RECIPES)
        raise UsageError(f"{path}: there is no recipe {shortened(recipe)}; there is {known}.")
    return recipe


def _parts(path: Path) -> dict[str, dict[str, Any]]:
    found = read_object(path)
    if not found.keys() <= KEYS:
        raise UsageError(
            f"{path} must be a JSON object with base, grid, runs, recipe and harvest, and no more."
        )
    recipe = read_recipe(path)
    found.pop("recipe", None)
    for name, part in found.items():
        if not isinstance(part, dict):
            raise UsageError(f"{path}: {name} must be an object.")
    return found if recipe is None else found | {"runs": _of_recipe(path, recipe, found)}


def _of_recipe(path: Path, recipe: str, found: dict[str, Any]) -> dict[str, Any]:
    """The runs of a recipe with the file's changes."""
    runs, changes = RECIPES[recipe], found.get("runs", {})
    if found.get("grid"):
        raise UsageError(f"{path}: a set has one SAE per place; leave out grid or recipe.")
    if unknown := sorted(changes.keys() - runs.keys()):
        raise UsageError(
            f"{path}: the recipe {recipe} has no run {shortened(unknown[0])}; it has "
            f"{', '.join(runs)}."
        )
    for name, change in changes.items():
        if not isinstance(change, dict) or LAYERS in change:
            raise UsageError(f"{path}: run {name} must be an object without layers: a set has all.")
        if any(change.get(key) and LAYER not in str(change[key]) for key in SITES):
            raise UsageError(
                f"{path}: run {name}: write * for the layer in its sites: a set has all."
            )
    return {name: {**sites, **changes.get(name, {})} for name, sites in runs.items()}


def _options(path: Path, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of every run before its layers are known."""
    found = _parts(path)
    base, grid, runs = (found.get(key, {}) for key in ("base", "grid", "runs"))
    changes = {**_grid(path, grid), **runs}
    if not changes:
        raise UsageError(f"{path} describes no run; give a grid, or runs.")
    if len(changes) > MAX_RUNS:
        raise UsageError(f"{path} describes {len(changes)} runs, more than {MAX_RUNS}.")
    return {name: _changed(path, name, base | given, change) for name, change in changes.items()}


def _by_layer(path: Path, name: str, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A run's options; where its sites have a star, those of each layer."""
    hooks = _hooks(path, name, values)
    joined, layers = values.get(LAYERS) == JOINED, _listed(path, name, values)
    values.pop(LAYERS, None)
    if not any(LAYER in hook for hook in hooks):
        if layers is not None:
            raise UsageError(f"{path}: run {name} lists layers; write * for the layer in its site.")
        return {name: values}
    if "activations" not in values:
        raise UsageError(
            f"{path}: run {name}: activations is missing; name a store, or give a harvest."
        )
    store = ActivationStore(str(values["activations"]))
    there = [n for n in range(MOST_LAYERS) if _at(hooks, n) <= set(store.sites)]
    if missing := [n for n in layers or () if n not in there]:
        raise UsageError(
            f"{path}: run {name}: {store.path} lacks {', '.join(sorted(_at(hooks, missing[0])))}."
        )
    if not there:
        raise UsageError(f"{path}: run {name}: {store.path} has {' and '.join(hooks)} of no layer.")
    if joined:
        sites = {key: str(values[key]) for key in SITES if values.get(key)}
        return {name: values | {key: _joined(hook, there) for key, hook in sites.items()}}
    digits = len(str(there[-1]))
    return {
        f"{name}-{n:0{digits}}": values
        | {key: str(values[key]).replace(LAYER, str(n)) for key in SITES if values.get(key)}
        for n in layers or there
    }


def _joined(hook: str, layers: Sequence[int]) -> str:
    """The joint site of these layers."""
    return JOIN.join(hook.replace(LAYER, str(n)) for n in layers) if LAYER in hook else hook


def _at(hooks: Sequence[str], layer: int) -> set[str]:
    return {hook.replace(LAYER, str(layer)) for hook in hooks}


def _hooks(path: Path, name: str, values: dict[str, Any]) -> list[str]:
    """What a run reads and reconstructs, with stars."""
    hooks = [str(values[key]) for key in SITES if values.get(key)]
    if any(hook.count(LAYER) > 1 for hook in hooks):
        raise UsageError(f"{path}: run {name}: a site has one layer, and so one *.")
    return hooks


def _listed(path: Path, name: str, values: dict[str, Any]) -> list[int] | None:
    layers = values.get(LAYERS)
    if layers is None or layers == JOINED:
        return None
    numbers = isinstance(layers, list) and all(type(n) is int and n >= 0 for n in layers)
    if not numbers or not layers or len(set(layers)) < len(layers):
        raise UsageError(f"{path}: run {name}: layers must be a list of numbers, each once.")
    return layers


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


def _changed(
    path: Path,
    name: str,
    base: dict[str, Any],
    changes: Any,  # noqa: ANN401
) -> dict[str, Any]:
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
    return values


def _config(path: Path, name: str, values: dict[str, Any]) -> TrainConfig:
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: run {name}: {first_problem(error)}.") from error

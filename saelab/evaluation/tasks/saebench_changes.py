"""Results of TPP, SCR, RAVEL and unlearning as SAEBench writes them; see `saebench`."""

import statistics
from collections.abc import Mapping
from typing import Any

from saelab.evaluation.tasks.clamping import N_LATENTS, SHARES
from saelab.evaluation.tasks.options import FigureWithInterval
from saelab.evaluation.tasks.removal import N_VALUES

Values = dict[str, Any]


def _ravel(model: str, found: Any | None) -> Values | None:  # noqa: ANN401 - Ravel
    """Configuration, means over kinds of entities, and each attribute's figures."""
    if found is None:
        return None
    keys = ("disentanglement", "cause", "isolation")
    tasks = list(found.tasks.values())
    metrics = {
        f"{key}_score": statistics.fmean(getattr(task, key).value for task in tasks) for key in keys
    }
    config = {
        "model_name": model,
        "random_seed": tasks[0].setting["seed"],
        "entity_attribute_selection": {n: list(t.attributes) for n, t in found.tasks.items()},
        "num_pairs_per_attribute": tasks[0].setting["n_pairs"],
    }
    by_attribute = {
        f"{kind}_results": {
            f"{kind}_{name}": {
                "cause_score": one.cause.value,
                "isolation_score": one.isolation.value,
                "disentangle_score": (one.cause.value + one.isolation.value) / 2,
            }
            for name, one in task.attributes.items()
        }
        for kind, task in found.tasks.items()
    }
    metrics = {"ravel": metrics}
    return {"config": config, "metrics": metrics, "details": [], "unstructured": by_attribute}


def _unlearning(model: str, found: Any | None) -> Values | None:  # noqa: ANN401 - Unlearning
    """Configuration, and the mean score of the subjects."""
    if found is None:
        return None
    tasks = list(found.tasks.values())
    config = {
        "model_name": model,
        "random_seed": tasks[0].setting["seed"],
        "dataset_names": list(dict.fromkeys(name for task in tasks for name in task.known)),
        "retain_thresholds": list(SHARES),
        "n_features_list": list(N_LATENTS),
        "multipliers": tasks[0].setting["clamp"],
    }
    score = statistics.fmean(task.score.value for task in tasks)
    metrics = {"unlearning": {"unlearning_score": score}}
    return {"config": config, "metrics": metrics, "details": []}


def _tpp(model: str, found: Any | None) -> Values | None:  # noqa: ANN401 - Tpp
    if found is None:
        return None
    details = []
    for name, task in found.tasks.items():
        parts = {
            "total_metric": [one.value for one in task.total],
            "intended_diff_only": task.intended,
            "unintended_diff_only": task.unintended,
        }
        columns = {
            f"tpp_threshold_{n}_{part}": value
            for part, values in parts.items()
            for n, value in zip(N_VALUES, values, strict=True)
        }
        details.append({"dataset_name": name, **columns})
    return _perturbed(model, found.tasks, details, "tpp_metrics", scr=False)


def _scr(model: str, found: Any | None) -> Values | None:  # noqa: ANN401 - Scr
    if found is None:
        return None
    details = []
    for name, task in found.tasks.items():
        row: Values = {"dataset_name": name}
        for number, (label, one) in enumerate(task.directions.items(), 1):
            row |= _by_n(f"scr_dir{number}", one.score)
            row |= _by_n("scr_metric", one.score) if label == task.chosen else {}
        details.append(row)
    return _perturbed(model, found.tasks, details, "scr_metrics", scr=True)


def _by_n(key: str, scores: list[FigureWithInterval]) -> Values:
    # SAEBench gives 0 where there is no gap.
    values = [one.value for one in scores] or [0.0] * len(N_VALUES)
    return {f"{key}_threshold_{n}": value for n, value in zip(N_VALUES, values, strict=True)}


def _perturbed(
    model: str, tasks: Mapping[str, Any], details: list[Values], key: str, *, scr: bool
) -> Values:
    keys = [name for name in details[0] if name != "dataset_name"]
    means = {name: statistics.fmean(one[name] for one in details) for name in keys}
    setting = next(iter(tasks.values())).setting
    config = {
        "model_name": model,
        "random_seed": setting["seed"],
        "dataset_names": list(tasks),
        "perform_scr": scr,
        "train_set_size": setting["n_train"],
        "test_set_size": setting["n_test"],
        "context_length": setting["length"],
        "n_values": list(N_VALUES),
    }
    return {"config": config, "metrics": {key: means}, "details": details}


CHANGES = {"tpp": _tpp, "scr": _scr, "ravel": _ravel, "unlearning": _unlearning}
"""The values of the result of each kind of evaluation that changes latents; None without one."""

"""`saelab train --budget`: width, k, batch and tokens from a time."""

import re
from pathlib import Path
from typing import Any

from saelab.config import UsageError
from saelab.ranks import Ranks

CHOSEN = {"--budget": ("--d-sae", "--n-tokens")}
"""Required options that need not be given beside it."""
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def seconds_of(text: str) -> float:
    """The seconds of a time such as 90s, 10m or 2h.

    Raises:
        UsageError: it is none, or zero.
    """
    found = _TIME.fullmatch(text)
    if found is None or not float(found[1]):
        raise UsageError(
            f"--budget {text} is no time; give seconds, minutes or hours: 90s, 10m, 2h."
        )
    return float(found[1]) * _SECONDS[found[2]]


def fill(
    budget: str, variant: str, own: dict[str, Any], values: dict[str, Any], out: Path, device: str
) -> None:
    """Decide what the command line leaves open; `own` are the SAE's options, `values` the others.

    A run that was begun goes on with what was chosen then.

    Raises:
        UsageError: the time is too short for a sensible run, or no law tells what it takes.
    """
    seconds = seconds_of(budget)
    _check(values)
    if _fill_begun(own, values, out):
        return
    from saelab.activations.store import ActivationStore
    from saelab.bench.budget import BudgetSetting, choose, pace_here
    from saelab.console import say
    from saelab.lm.load import resolve_device
    from saelab.resources import free_on

    store = ActivationStore(values["activations"])
    site = store.site(values["site"])
    target = store.site(values.get("target_site") or values["site"])
    names = ("n_tokens", "batch_size", "lr", "moments")
    given = {name: values[name] for name in names if name in values}
    given |= {"d_sae": own["d_sae"]} if "d_sae" in own else {}
    given |= {"half": values["precision"] == "bfloat16"} if "precision" in values else {}
    given["sae"] = {name: value for name, value in own.items() if name != "d_sae"}
    setting = BudgetSetting(variant, site.d_in, target.d_in, site.n_rows, given)
    where = resolve_device(device)
    found = choose(seconds, setting, pace_here(where, free_on(where), setting))
    own |= {"d_sae": found.d_sae} | ({} if found.k is None else {"k": found.k})
    values |= {"n_tokens": found.n_tokens, "batch_size": found.batch_size}
    values["precision"] = "bfloat16" if found.half else "float32"
    for sentence in found.told:
        say(sentence)


def _check(values: dict[str, Any]) -> None:
    if (n := Ranks.from_environment().world) > 1:
        raise UsageError(
            f"--budget measures one process, and there are {n}; give --d-sae and --n-tokens."
        )
    wrong = [name for name in ("live", "init_from", "beside") if values.get(name)]
    if values.get("objective", "local") != "local":
        wrong.append("objective")
    if wrong:
        raise UsageError(
            f"--budget plans a training from a store alone, without --{wrong[0].replace('_', '-')};"
            " give --d-sae and --n-tokens instead."
        )


def _fill_begun(own: dict[str, Any], values: dict[str, Any], out: Path) -> bool:
    """Take from a run that was begun at `out` what the command line leaves open."""
    from saelab.training.run import Run
    from saelab.training.run_paths import CONFIG

    if not (out / CONFIG).is_file():
        return False
    options = Run(out).options
    own |= {name: options["sae"][name] for name in ("d_sae", "k") if name in options["sae"]} | own
    for name in ("n_tokens", "batch_size", "precision"):
        values.setdefault(name, options[name])
    return True

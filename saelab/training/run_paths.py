"""The names of runs and of their files, and what marks a directory as a run."""

import os
from pathlib import Path

from saelab.config import UsageError

KEPT = "kept"
TOKENS = "tokens_"
AVERAGED = "ema"
"""The place, inside a run, of the run whose weights are averaged over training."""
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
"""The files of a finished run; either of them marks a directory as a run."""
FEATURES, CHOSEN_FEATURES = "features.h5", "chosen_features.h5"
"""What `saelab features` has collected: of all latents, and with --latents of the chosen ones; the
second has `latent/number` besides."""
SET = "set.json"
"""The manifest of a set, which marks a directory of runs as one."""


def is_run(path: Path) -> bool:
    """Whether a run is there, or what is left of one."""
    return os.path.lexists(path / CONFIG) or os.path.lexists(path / WEIGHTS)


def check_run(path: Path) -> None:
    """Refuse a directory without a config.json.

    Raises:
        UsageError: it is not a run, or its config.json is gone.
    """
    if os.path.lexists(path / CONFIG):
        return
    if os.path.lexists(path / WEIGHTS):
        raise UsageError(f"{path} has no {CONFIG} beside its {WEIGHTS}; copy it back.")
    if os.path.lexists(path / SET):
        raise UsageError(f"{path} is a set of runs; name one of them, a directory in it.")
    raise UsageError(f"{path} is not a run: it has no {CONFIG}.")


def kept_at(path: Path, n_tokens: int) -> Path:
    """Where the run at `path` keeps its SAE after so many tokens."""
    return path / KEPT / f"{TOKENS}{n_tokens:012d}"


def run_name(path: Path) -> str:
    """See `Run.name`."""
    tokens = path.name.removeprefix(TOKENS)
    if path.parent.name == KEPT and tokens.isdecimal():
        return f"{path.parent.parent.name}@{int(tokens)}"
    if path.name == AVERAGED and (path.parent / "config.json").is_file():
        return f"{run_name(path.parent)}@{AVERAGED}"
    return path.name

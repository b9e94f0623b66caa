"""What a process can do where packages of extras are not installed: `python without.py`.

It writes to found.json what can be done with arrays if only the extra `train` is installed, then
what each verb and each public name says without any extra.
"""

import contextlib
import io
import json
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from typing_extensions import override

from saelab.extras import EXTRAS


class Without(PathFinder):
    """Finds what is installed, but for the packages that are refused."""

    refused = frozenset(EXTRAS)

    @classmethod
    @override
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in cls.refused:
            return None
        return PathFinder.find_spec(fullname, path, target)


VERBS = {
    "demo": "--out new",
    "plan": "--model tiny --sites hook_embed --d-sae 64 --n-tokens 1000",
    "harvest": "--model tiny --sites hook_embed --text tiny --n-tokens 10 --out new",
    "train": "topk --activations {store} --site mine --d-sae 32 --k 4 --n-tokens 400 --out new",
    "evaluate": "{run}",
    "tasks": "{run} --letters",
    "features": "{run}",
    "explain": "{run} --llm tokens",
    "names": "{run} --out new",
    "steer": "{run} --all",
    "transport": "--run {run} --from a",
    "diff": "{run}",
    "circuit": "{run} --prompt a",
    "browse": "nowhere",
    "import": "{run} --activations {store} --out new",
    "export": "{run} --to sae-lens --out exported",
    "show": "{run}",
    "verify": "{run}",
    "check": "tiny",
    "bench": "variants",
    "claims": "--only abs-topk-signed",
    "completion": "",
    "doctor": "",
    "push": "{run} owner/name --dry-run --out pushed",
    "publish": "{run} --out site",
}


def said(verb, *arguments):
    """The verb's exit code and what it says to standard error."""
    from saelab.cli import main

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main([verb, *arguments])
        except SystemExit as end:
            code = end.code
    return code, errors.getvalue()


def accessed(name):
    """What the access to a public name says; empty if it works."""
    import saelab
    from saelab.config import UsageError

    try:
        getattr(saelab, name)
    except UsageError as error:
        return str(error)
    return ""


def of_arrays():
    """What is done with arrays where only the extra `train` is installed."""
    import numpy as np

    from saelab.activations.arrays import write_arrays

    rows = np.random.default_rng(0).normal(size=(2000, 16)).astype("float32")
    write_arrays("store", {"mine": rows})
    options = "--batch-size 100 --lr 1e-2 --device cpu --out run"
    train = f"{VERBS['train'].partition(' --out')[0]} {options}".format(store="store")
    return {"train": said("train", *train.split()), "evaluate": said("evaluate", "run")}


def without_any():
    """What the verbs and the public names say where no extra is installed."""
    import saelab
    from saelab.config import UsageError
    from saelab.drawing import figure
    from saelab.lm.load import load_language_model
    from saelab.sae.storage import load_sae
    from saelab.training.run import Run

    places = {"run": "run", "store": "store"}
    found = {
        "loaded": type(load_sae(Path("run/weights.safetensors"))).__name__,
        "names": {name: accessed(name) for name in dir(saelab)},
        "verbs": {v: said(v, *line.format(**places).split()) for v, line in VERBS.items()},
        "help": {verb: said(verb, "--help") for verb in VERBS},
    }
    calls = {
        "load_language_model": lambda: load_language_model("tiny"),
        "figure": lambda: figure(Run(Path("run"))),
    }
    for name, call in calls.items():
        try:
            call()
        except UsageError as error:
            found[name] = str(error)
    return found


def main():
    sys.meta_path[sys.meta_path.index(PathFinder)] = Without
    Without.refused = frozenset(name for name in EXTRAS if EXTRAS[name][0] != "train")
    found = of_arrays()
    Without.refused = frozenset(EXTRAS)
    for name in list(sys.modules):
        if name.partition(".")[0] in {"saelab", *EXTRAS}:
            del sys.modules[name]
    Path("found.json").write_text(json.dumps(found | without_any()))


if __name__ == "__main__":
    main()

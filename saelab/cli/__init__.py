"""The `saelab` command: each verb makes one result and prints its path last."""

import errno
import keyword
import os
import platform
import signal
import sys
from collections.abc import Callable
from importlib import import_module

from saelab.collector import whole_process
from saelab.config import UsageError
from saelab.interrupt import Stopped, stopped_by_signal

VERBS = {
    "demo": "the whole pipeline on the shipped language model, in under 3 minutes on 2 cores",
    "plan": "say what SAEs of a model cost on any number of GPUs, before anything runs",
    "harvest": "record a language model's activations on a text",
    "train": "train a sparse autoencoder on recorded activations",
    "evaluate": "measure a trained SAE on held-out text",
    "tasks": "measure a trained SAE on tasks that papers report: probing, absorption, TPP, SCR",
    "features": "collect what each latent fires on and what it writes",
    "explain": "say what latents mean, in a language model's words",
    "names": "write what latents are called to a file, or read it from one",
    "steer": "steer the model with latents, and measure which of them steer",
    "transport": "say which latents an earlier site carries, and which are computed between",
    "diff": "say which latents of a crosscoder its sites or models share",
    "circuit": "explain a prediction by the latents that make it, and test them",
    "browse": "open the feature browser",
    "publish": "write a run's latents, circuits and figures as pages to send",
    "import": "make a run of an SAE from SAELens, Gemma Scope, dictionary_learning or sparsify",
    "export": "write a run's SAE for SAELens",
    "push": "give a run to others on the Hugging Face Hub, with a model card",
    "show": "print what a store or a run holds",
    "verify": "check that every byte of a store or of a run is as it was written",
    "check": "say what of a language model works here",
    "bench": "measure training steps, the store and the variants on this machine",
    "claims": "measure the papers' claims again, in one table",
    "doctor": "say what is installed, and what is missing for which verb",
    "completion": "print what makes a shell complete verbs and options",
}

LM, TRAIN = ("transformer_lens",), ("h5py", "einops")
NEEDS = {
    **dict.fromkeys(("demo", "harvest", "tasks", "features", "steer", "transport", "circuit"), LM),
    **dict.fromkeys(("plan", "check", "claims"), LM),
    **dict.fromkeys(
        ("train", "evaluate", "explain", "names", "diff", "import", "verify", "push"), TRAIN
    ),
    **dict.fromkeys(("browse", "publish"), ("streamlit", *TRAIN, "plotly")),
}
"""Packages of extras without which a verb can do nothing."""
TOGETHER = ("harvest", "train")
"""Verbs that several processes run together."""
READERS = ("plan", "browse", "show", "verify", "check", "doctor")
BAD_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
AGAIN = "What was written is whole; run the same command again."

ABOUT = """\
From a language model's activations to explained features.

`saelab help VERB` and `saelab VERB --help` explain a verb and its options, and `saelab --version`
prints version, commit and device. To start:

    saelab demo
    saelab browse runs/demo

In bash and zsh, this makes the Tab key complete verbs and options (fish: `saelab help completion`):

    source <(saelab completion)
"""


def command() -> int:
    """`main` as all that this process does, which then starts and ends faster."""
    return whole_process(main)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0: done; 1: a check failed, or a system error; 2: bad input; 128 + n: stopped by signal n.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    while arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if arguments[:1] in (["-V"], ["--version"]):
        print(_version())
        return 0
    verb, *own = arguments or ["--help"]
    return _run(verb, own)


def _version() -> str:
    """The version, the commit of a checkout, and the devices; needs neither torch nor a GPU."""
    from saelab.cli.gpus import find_gpus, told
    from saelab.provenance import commit, version_of

    found = commit()
    number, plus, changed = (found or "").partition("+")
    parts = [f"commit {number[:12]}{plus}{changed}"] if found else []
    parts += [f"Python {platform.python_version()}", told(find_gpus())]
    return f"saelab {version_of('saelab') or 'from its source'} ({', '.join(parts)})"


def _main_of(verb: str) -> Callable[[list[str]], int]:
    # Each verb's module is imported only when it runs, since most of them import torch.
    if verb not in VERBS:
        from saelab.cli.help_text import Command
        from saelab.cli.parse import choose

        choose(Command("saelab", ABOUT, choices=VERBS, choice="VERB"), [verb])
    # `import` cannot be the name of a Python module.
    module = f"{verb}_" if keyword.iskeyword(verb) else verb
    return import_module(f"saelab.cli.{module}").main


def _run(verb: str, arguments: list[str]) -> int:
    # Idle OpenMP threads spin by default. Where another process needs the cores, this makes
    # training many times slower. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    who = f"saelab {verb}" if verb in VERBS else "saelab"
    try:
        with stopped_by_signal():
            try:
                _check_alone(verb, arguments)
                _check_installed(verb, arguments)
                return _main_of(verb)(arguments)
            finally:
                # Flushed here, since at exit a full disk would be reported with a traceback.
                sys.stdout.flush()
    except UsageError as error:
        return _fail(f"{who}: {error}", error.exit_code)
    except ModuleNotFoundError as error:
        from saelab.extras import explained

        if (missing := explained(error)) is None:
            raise
        return _fail(f"{who}: {missing}")
    except BrokenPipeError:
        # The reader of a pipe (head, less) has closed it.
        _give_up_output()
        return 141
    except OSError as error:
        from saelab.files import failure

        _give_up_output()
        if error.errno in BAD_NAMES:
            return _fail(f"{who}: {failure(error)}.")
        _fail(f"{who}: {failure(error)}." + _again(verb))
        return 1
    except (Stopped, KeyboardInterrupt) as stop:
        number = stop.signal if isinstance(stop, Stopped) else signal.SIGINT
        _fail(f"{who}: stopped by {number.name}." + _again(verb))
        return 128 + number


def _check_alone(verb: str, arguments: list[str]) -> None:
    """Refuse to run a verb of one process in several: they would overwrite each other's files."""
    n = os.environ.get("WORLD_SIZE", "1")
    scale = [verb, *arguments[:1]] == ["bench", "scale"]
    if verb not in (*TOGETHER, *READERS) and not scale and n != "1":
        raise UsageError(
            f"it runs in one process, and WORLD_SIZE says {n}; start it without torchrun, which "
            f"is for {', '.join(TOGETHER)} and bench scale."
        )


def _check_installed(verb: str, arguments: list[str]) -> None:
    """Name the extra that a verb cannot do without, before anything of it runs."""
    from saelab.extras import required

    if not {"-h", "--help"} & set(arguments):
        for package in NEEDS.get(verb, ()):
            required(package)


def _again(verb: str) -> str:
    return "" if verb in READERS else f" {AGAIN}"


def _give_up_output() -> None:
    """Drop unwritten output, about which Python would complain again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int = 2) -> int:
    from saelab.console import say

    say(message)
    return code

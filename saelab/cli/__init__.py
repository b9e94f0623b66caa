"""The `saelab` command: one verb, one result, its path printed last."""

import errno
import keyword
import os
import sys
from importlib import import_module
from importlib.metadata import version

from saelab.config import UsageError

VERBS = {
    "demo": "the whole pipeline on the shipped language model, in under 3 minutes on 2 cores",
    "harvest": "record a language model's activations on a text",
    "train": "train a sparse autoencoder on recorded activations",
    "evaluate": "measure a trained SAE on held-out text",
    "features": "collect what each latent fires on and what it writes",
    "steer": "steer the model with latents, and measure which of them steer",
    "circuit": "explain a prediction by the latents that make it, and test them",
    "browse": "open the feature browser",
    "import": "make a run of an SAE from SAELens, Gemma Scope, dictionary_learning or sparsify",
    "export": "write a run's SAE for SAELens",
    "show": "print what a store or a run holds",
    "verify": "check that every byte of an activation store is as it was written",
    "check": "say what of a language model works here",
    "bench": "measure training steps, the store and the variants on this machine",
    "completion": "print what makes a shell complete verbs and options",
}

ABOUT = """\
From a language model's activations to explained features.

`saelab help VERB` and `saelab VERB --help` explain a verb and its options, and `saelab --version`
prints the version. To start:

    saelab demo
    saelab browse runs/demo

In bash and zsh, this makes the Tab key complete verbs and options:

    source <(saelab completion)
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 a check failed, 2 bad input."""
    # Imported here, since most of what imports this package wants no command line.
    from saelab.cli.help_text import Command
    from saelab.cli.parse import choose

    arguments = list(sys.argv[1:] if argv is None else argv)
    while arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if arguments[:1] in (["-V"], ["--version"]):
        print(f"saelab {version('saelab')}")
        return 0
    try:
        command = Command("saelab", ABOUT, choices=VERBS, choice="VERB")
        verb = choose(command, arguments or ["--help"])
    except UsageError as error:
        return _fail(str(error))
    return _run(verb, arguments[1:])


def _run(verb: str, arguments: list[str]) -> int:
    # Idle threads of OpenMP spin by default; where another process wants the cores, that makes
    # training many times slower. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Each verb's module is imported only when it runs: most of them bring torch along.
    try:
        # `import` is no name for a Python module.
        module = f"{verb}_" if keyword.iskeyword(verb) else verb
        return import_module(f"saelab.cli.{module}").main(arguments)
    except UsageError as error:
        return _fail(f"saelab {verb}: {error}")
    except BrokenPipeError:
        # The reader of a pipe (head, less) has left; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"saelab {verb}: {error.strerror}{where}; what was written before is whole.")
    except KeyboardInterrupt:
        return 130


def _fail(message: str) -> int:
    from saelab.console import printable

    print(printable(message), file=sys.stderr)
    return 2

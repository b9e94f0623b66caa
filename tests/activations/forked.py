"""Processes that start in milliseconds, since what they import takes seconds."""

import multiprocessing
import os
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

MODULES = [
    "activations.store_cases",
    "saelab.activations.harvest",
    *(f"saelab.cli.{verb}" for verb in ("harvest", "train", "features", "evaluate", "circuit")),
    "saelab.training.loop",
    "saelab.evaluation.evaluate",
    "saelab.analysis.features",
    "saelab.analysis.circuits.explain",
    "saelab.lm.hf",
    "saelab.lm.bridge",
    # What transformers imports lazily.
    "transformers.models.auto.modeling_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_tokenizers",
]


@cache
def processes():
    """Makes processes forked from one that has imported what the verbs under test import."""
    from saelab.sae.variants import BUILT_IN

    context = multiprocessing.get_context("forkserver")
    variants = [place.partition(":")[0] for place in BUILT_IN.values()]
    context.set_forkserver_preload([*MODULES, *variants])
    warm = context.Process(target=time.sleep, args=(0,))
    warm.start()
    warm.join()
    return context


def all_end_well(n, work, *arguments):
    """Run `work(rank, port, *arguments)` in n processes; at this port they find each other."""
    from torch.distributed import TCPStore

    store = TCPStore("localhost", 0, is_master=True)
    started = [
        processes().Process(target=work, args=(rank, store.port, *arguments)) for rank in range(n)
    ]
    for each in started:
        each.start()
    for each in started:
        each.join()
    assert [each.exitcode for each in started] == [0] * n


class Command:
    """`saelab` with these arguments and variables in a process of its own, used like a `Popen`."""

    def __init__(self, arguments, environment):
        self.printed = [empty_file() for _ in ("out", "err")]
        given = (arguments, environment, self.printed)
        self.process = processes().Process(target=_main, args=given)
        self.process.start()

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def kill(self):
        self.process.kill()

    def communicate(self):
        """What it printed to either stream, when it has ended."""
        self.process.join()
        texts = [path.read_text() for path in self.printed]
        for path in self.printed:
            path.unlink()
        return texts


def empty_file() -> Path:
    """A new file of the system's temporary ones."""
    file, path = tempfile.mkstemp()
    os.close(file)
    return Path(path)


def _main(arguments, environment, printed):
    import torch

    from saelab.cli import main

    for path, stream in zip(printed, (1, 2), strict=True):
        file = os.open(path, os.O_WRONLY)
        os.dup2(file, stream)
    torch.set_num_threads(1)
    os.environ.update(environment)
    sys.exit(main(arguments))

"""Trainings in several processes, for tests of what they train together."""

import time

from activations.forked import Command
from conftest import small_config
from torch.distributed import TCPStore

WIDTH = 33
"""No multiple of the number of processes."""


class Launch:
    """A command in several processes that find each other as torchrun's do."""

    def __init__(self, arguments, n, other=(), **variables):
        # torchrun keeps the store in a process of its own.
        self.store = TCPStore("localhost", 0, is_master=True)
        found = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(self.store.port)}
        found |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": str(n), **variables}
        own = [[*arguments, *(other if rank == n - 1 else ())] for rank in range(n)]
        ranks = [dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(n)]
        self.commands = [Command(a, found | r) for a, r in zip(own, ranks, strict=True)]

    def end(self):
        """Exit codes, and what all wrote to standard error."""
        said = "".join(command.communicate()[1] for command in self.commands)
        return [command.returncode for command in self.commands], said


def base(store, **options):
    """Options of a training of ten steps, as JSON; without the SAE's."""
    config = small_config(store, n_tokens=1000, dead_after=300, log_every=5, **options)
    return config.model_dump(mode="json", exclude_defaults=True, exclude={"sae"})


def arguments(store, out, variant="batch-topk", **options):
    """The command of a training of many steps, with a checkpoint at every second one."""
    values = base(store, checkpoint_every=2) | {"n_tokens": 10_000} | options
    given = [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]
    return ["train", variant, f"--d-sae={WIDTH}", "--k=4", *given, "--device=cpu", f"--out={out}"]


def wait_for_checkpoint(run):
    """Wait until a training has written its first."""
    while not any((run / "checkpoints").glob("step_*[0-9].safetensors")):
        time.sleep(0.01)

"""Training speed of one SAE alone."""

import time

import torch

from saelab.lm.load import resolve_device
from saelab.lm.protocol import LanguageModel
from saelab.training.objectives import make_objective
from saelab.training.run import Run
from saelab.training.source import Source
from saelab.training.state import TrainingState

WARM_UP_STEPS = 3


def training_speed(
    run: Run,
    *,
    steps: int = 15,
    rounds: int = 3,
    device: str | torch.device = "auto",
    lm: LanguageModel | None = None,
) -> float:
    """Tokens per second when this run alone continues, reading the store included.

    The best of `rounds` rounds of `steps` steps counts. Steps start from the trained weights, since
    a fresh SAE may be less sparse, and with no latent dead. The run is not changed.
    """
    config, where = run.config, resolve_device(device)
    source = Source([config], where, lm)
    objective = make_objective(source)
    stream = source.stream()
    state = TrainingState.start(config, source, source.start_rows(), run.load_sae())

    def train(n: int) -> None:
        losses = [state.train_on(next(stream), objective).terms.total for _ in range(n)]
        float(losses[-1].detach())  # Waits for the device.

    train(WARM_UP_STEPS)
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        train(steps)
        times.append(time.perf_counter() - started)
    return steps * config.batch_size / min(times)

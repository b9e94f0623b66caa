"""How fast one SAE trains by itself."""

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
    """Tokens a second of continuing this run alone, reading the store included.

    The best of `rounds` times `steps` steps. They start from the trained weights, since a fresh SAE
    need not be as sparse as a trained one, and with no latent dead; the run itself stays as it is.
    """
    config, where = run.config, resolve_device(device)
    source = Source([config], where, lm)
    objective = make_objective(source)
    stream = source.stream()
    state = TrainingState.start(config, source, source.start_rows(), run.load_sae())

    def train(n: int) -> None:
        losses = [state.advance(next(stream), objective).terms.total for _ in range(n)]
        float(losses[-1].detach())  # Waits for the device.

    train(WARM_UP_STEPS)
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        train(steps)
        times.append(time.perf_counter() - started)
    return steps * config.batch_size / min(times)

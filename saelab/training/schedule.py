"""The learning rate over a run: warm-up, then one of several schedules.

r falls from 1 (before the decay) to 0 (after the last step). wsd and linear fall as r, cosine as (1
- cos(pi r)) / 2, each from the peak to a final fraction of it.
"""

import math

from saelab.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of step `step` (0-based); positive at every step of the run."""
    rising = min(1.0, (step + 1) / max(1, config.n_warmup))
    falling = min(1.0, (config.n_steps - step) / max(1, config.n_decay))
    if config.warmup_shape == "cosine":
        rising = _half_wave(rising)
    if config.schedule == "cosine":
        falling = _half_wave(falling)
    first, last = config.initial_lr_fraction, config.final_lr_fraction
    return config.peak_lr * min(first + (1 - first) * rising, last + (1 - last) * falling)


def _half_wave(r: float) -> float:
    """Half a wave of a cosine from 0 to 1, flat at both ends."""
    return (1 - math.cos(math.pi * r)) / 2

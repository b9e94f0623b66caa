"""The learning rate's course: linear warm-up, a plateau, linear decay to zero."""

from saelab.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step `step` (0-based); positive at every step of the run."""
    n_decay = round(config.decay_fraction * config.n_steps)
    rising = min(1.0, (step + 1) / max(1, config.n_warmup))
    falling = min(1.0, (config.n_steps - step) / max(1, n_decay))
    return config.peak_lr * min(rising, falling)

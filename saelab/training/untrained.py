"""The SAE that a training starts with, before it has seen any data."""

import torch

from saelab.sae.base import AbstractSAE
from saelab.sae.transcoder import make_transcoder
from saelab.training.config import TrainConfig


def untrained_sae(config: TrainConfig, d_in: int, d_out: int) -> AbstractSAE:
    """The SAE that `config` and its seed draw, which reads `d_in` and writes `d_out` numbers.

    Data decide only biases, thresholds and a transcoder's encoder; decoder rows stay like this
    until the first step.

    Raises:
        UsageError: the options do not fit each other.
    """
    # Initial weights are drawn on the CPU, so that a seed gives the same SAE on every device.
    generator = torch.Generator().manual_seed(config.seed)
    sae = config.sae.build(d_in, generator)
    if config.target_site is not None:
        make_transcoder(sae, d_out, skip=config.skip, generator=generator)
    return sae

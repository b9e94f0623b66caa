"""The SAE that a training starts with, before it has seen any data."""

from collections.abc import Sequence

import torch

from saelab.sae.base import AbstractSAE
from saelab.sae.transcoder import make_transcoder
from saelab.training.config import TrainConfig


def untrained_sae(
    config: TrainConfig, d_in: int, d_out: int, widths: Sequence[int] = ()
) -> AbstractSAE:
    """The SAE that `config` and its seed draw, which reads `d_in` and writes `d_out` numbers.

    `widths` are those of the sites that it reads, if they are several.

    Data decide only biases, thresholds and a transcoder's encoder; decoder rows stay like this
    until the first step.

    Raises:
        UsageError: the options do not fit each other.
    """
    # Initial weights are drawn on the CPU, so that a seed gives the same SAE on every device.
    generator = torch.Generator().manual_seed(config.seed)
    options = config.sae if len(widths) < 2 else config.sae.at_widths(widths)
    sae = options.build(d_in, generator)
    if config.target_site is not None:
        make_transcoder(sae, d_out, skip=config.skip, generator=generator)
    return sae

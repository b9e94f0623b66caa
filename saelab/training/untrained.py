"""The SAE that a training starts with, before it has seen any data."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from saelab.sae.base import AbstractSAE
from saelab.sae.transcoder import make_transcoder
from saelab.training.config import TrainConfig


def untrained_sae(
    config: TrainConfig,
    d_in: int,
    d_out: int,
    widths: Sequence[int] = (),
    device: torch.device | None = None,
) -> AbstractSAE:
    """The SAE that `config` and its seed draw, which reads `d_in` and writes `d_out` numbers.

    Data decide only biases, thresholds and a transcoder's encoder; decoder rows stay like this
    until the first step.

    Args:
        config: the training's options.
        d_in: numbers that it reads.
        d_out: numbers that it writes.
        widths: those of the sites that it reads, if they are several.
        device: where it is drawn, and stays. By default on the CPU, so that a seed gives the same
            SAE on every device; a GPU draws other numbers, and wide SAEs in a hundredth of the
            time.

    Raises:
        UsageError: the options do not fit each other.
    """
    generator = torch.Generator(device or "cpu").manual_seed(config.seed)
    options = config.sae if len(widths) < 2 else config.sae.at_widths(widths)
    with nullcontext() if device is None else device:
        sae = options.build(d_in, generator)
        if config.target_site is not None:
            make_transcoder(sae, d_out, skip=config.skip, generator=generator)
    return sae

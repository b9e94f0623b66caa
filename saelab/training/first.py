"""The SAEs of a group before their first step, made on threads while others begin to train."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from saelab.activations.parallel import results_ahead
from saelab.sae.base import AbstractSAE
from saelab.training.config import TrainConfig
from saelab.training.feeds import Feed
from saelab.training.origin import StartingRun, has_begun
from saelab.training.state import TrainingState


@dataclass(frozen=True)
class First:
    """An SAE before its first step, on the CPU, and what it starts from.

    Attributes:
        rows: the rows of its site that initialise it.
        origin: the run whose weights it starts from; None for random ones.
    """

    feed: Feed
    out: Path
    config: TrainConfig
    rows: Float[Tensor, "n d_in"]
    origin: StartingRun | None
    sae: AbstractSAE


def first_saes(feeds: Sequence[tuple[Feed, Mapping[Path, TrainConfig]]]) -> Iterator[First]:
    """The SAEs in their order; each is the same as one that is made alone.

    Raises:
        UsageError: the options of one do not fit.
    """
    # Before threads ask for it: it may write the norms that it finds into the store.
    _ = [feed.source.selection for feed, _ in feeds]
    every = [(feed, out, config) for feed, part in feeds for out, config in part.items()]
    return results_ahead(lambda each: _first(*each), every)


def _first(feed: Feed, out: Path, config: TrainConfig) -> First:
    config.check()
    rows = feed.source.start_rows()
    origin = None if has_begun(out) else StartingRun.of(config)
    sae = TrainingState.first_sae(
        config, feed.source, rows, None if origin is None else origin.sae()
    )
    return First(feed, out, config, rows, origin, sae)

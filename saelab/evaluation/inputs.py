"""What measurements read, and what some of them need."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activations.corpus import Corpus
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.rows import NO_LABELS, Rows, RowSample
from saelab.evaluation.stream import Text, TextBatch, read_text, stream
from saelab.lm.protocol import LanguageModel
from saelab.lm.sites import replaceable
from saelab.sae.base import AbstractSAE
from saelab.training.run import Run


@dataclass(frozen=True)
class Batch:
    """Held-out rows, where the SAE is.

    Attributes:
        x_hat: their reconstruction.
        text: the contexts that they come from; None for rows of arrays.
    """

    rows: Rows
    x_hat: Float[Tensor, "row d_out"]
    text: TextBatch | None = None


@dataclass
class Inputs:
    """What there is to measure a run on.

    Attributes:
        lm, corpus: the model and the held-out text; None for a run trained on arrays.
        label_names: of the ground-truth labels; empty where there are none.
        label_descriptions: by name, where the text has any.
        n_left_out: rows that were seen and not counted, since the SAE does not apply to them.
        sample: collects the first `options.n_sample` rows for the full suite.
        with_predictions: whether the texts of batches keep what the model predicted.
        found: results of the measurements before this one, by name.
    """

    run: Run
    sae: AbstractSAE
    options: EvaluateOptions
    lm: LanguageModel | None = None
    corpus: Corpus | None = None
    label_names: tuple[str, ...] = ()
    label_descriptions: Mapping[str, str] = field(default_factory=dict)
    n_left_out: int = 0
    with_predictions: bool = False
    sample: RowSample = field(init=False)
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sample = RowSample(self.options.n_sample if self.options.suite == "full" else 0)

    @property
    def site(self) -> str:
        """Where the SAE writes."""
        return self.run.config.written_site

    @property
    def device(self) -> torch.device:
        """Where the SAE is."""
        return self.sae.W_dec.device

    @property
    def model(self) -> LanguageModel:
        """The model of a measurement that needs one."""
        assert self.lm is not None, "say needs=(language_model,)"
        return self.lm

    @cached_property
    def rows(self) -> Rows:
        """The sample, once the text has been read."""
        return self.sample.rows()

    def texts(self) -> Iterator[Text]:
        """The held-out text once more, for a measurement that needs a model."""
        return self._again(read_text)

    def batches(self) -> Iterator[TextBatch]:
        """The held-out text once more, with the rows of the run's sites."""
        return self._again(stream)

    def _again(self, read: Callable[..., Iterator[Any]]) -> Iterator[Any]:
        options = self.options
        return read(
            self.run,
            self.model,
            self.corpus,
            n_tokens=options.n_tokens,
            batch_size=options.contexts,
        )


Need = Callable[[Inputs], str | None]
"""Says in one sentence why it is not there; None if it is."""


def language_model(inputs: Inputs) -> str | None:
    """The run's language model and a text for it."""
    if inputs.lm is not None:
        return None
    return "The run was trained on arrays, and this needs a language model."


def labels(inputs: Inputs) -> str | None:
    """Ground-truth labels of the rows."""
    return None if inputs.label_names else NO_LABELS


def replaceable_site(inputs: Inputs) -> str | None:
    """A site whose whole effect on the model goes through what the SAE writes there."""
    if replaceable(inputs.site):
        return None
    return f"The skip connection goes past {inputs.site}, so a change there is only half of one."

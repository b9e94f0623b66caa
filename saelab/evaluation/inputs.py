"""What measurements read, and requirements that they may have."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activations.corpus import Corpus
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.rows import NO_LABELS, Rows, RowSample
from saelab.host.host import Host
from saelab.host.text import Text, TextBatch, read_text, stream
from saelab.lm.protocol import LanguageModel
from saelab.sae.base import AbstractSAE
from saelab.sae.decoder import device_of
from saelab.sites import Site
from saelab.training.run import Run
from saelab.types import OuterFit


@dataclass(frozen=True)
class Batch:
    """A batch of held-out rows, on the SAE's device.

    Attributes:
        x_hat: the rows' reconstruction; None if the SAE reconstructs no activations.
        text: the contexts of the rows; None for rows of arrays.
        fit: how well u u^T is reconstructed, if the SAE reconstructs this instead.
    """

    rows: Rows
    x_hat: Float[Tensor, "row d_out"] | None
    text: TextBatch | None = None
    fit: OuterFit | None = None

    @classmethod
    def of(cls, sae: AbstractSAE, rows: Rows, text: TextBatch | None = None) -> "Batch":
        """The rows with what `sae` makes of their codes."""
        fit = sae.outer_fit(rows.x, rows.codes)
        x_hat = sae.decode(rows.codes, rows.x) if fit is None else None
        return cls(rows, x_hat, text, fit)


@dataclass
class Inputs:
    """Everything that a run's measurements may read.

    Attributes:
        host, corpus: the SAE in its model and the held-out text; None for a run trained on arrays.
        label_names: names of the ground-truth labels; empty if there are none.
        n_left_out: rows outside the SAE's domain, which do not count.
        with_predictions: whether the texts of batches keep the model's predictions.
        found: results of earlier measurements, by name.
    """

    run: Run
    sae: AbstractSAE
    options: EvaluateOptions
    host: Host | None = None
    corpus: Corpus | None = None
    label_names: tuple[str, ...] = ()
    n_left_out: int = 0
    with_predictions: bool = False
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def site(self) -> str:
        """The site that the SAE writes."""
        return self.run.config.written_site

    @property
    def device(self) -> torch.device:
        """The SAE's device."""
        return device_of(self.sae)

    @property
    def lm(self) -> LanguageModel:
        """The language model, for measurements that need one."""
        assert self.host is not None, "say needs=(language_model,)"
        return self.host.lm

    @cached_property
    def sample(self) -> RowSample:
        """Collects the first rows for the full suite."""
        return RowSample(self.options.n_sample if self.options.samples else 0)

    @cached_property
    def rows(self) -> Rows:
        """The first `options.n_sample` rows, available after all rows were read."""
        return self.sample.rows()

    def texts(self) -> Iterator[Text]:
        """The held-out text again, for a measurement that needs a model."""
        return read_text(*self._text, **self._amount)

    def batches(self, *, with_predictions: bool = False) -> Iterator[TextBatch]:
        """The held-out text again, with the rows of the run's sites."""
        return stream(*self._text, **self._amount, with_predictions=with_predictions)

    @property
    def _text(self) -> tuple[Host, Corpus]:
        assert self.host is not None, "say needs=(language_model,)"
        assert self.corpus is not None
        return self.host, self.corpus

    @property
    def _amount(self) -> dict[str, int]:
        return {"n_tokens": self.options.n_tokens, "batch_size": self.options.contexts}


Need = Callable[[Inputs], str | None]
"""Returns the reason, as a sentence, why something is missing; None if it is there."""


def language_model(inputs: Inputs) -> str | None:
    """A language model."""
    if inputs.host is not None:
        return None
    return "The run was trained on arrays, and this needs a language model."


def labels(inputs: Inputs) -> str | None:
    """Ground-truth labels."""
    return None if inputs.label_names else NO_LABELS


def another_encoder(inputs: Inputs) -> str | None:
    """Another encoder (`--encoder`)."""
    if inputs.options.encoder is not None:
        return None
    return "No other encoder was named; --encoder omp compares the SAE's own with a pursuit."


def codes_from_x(inputs: Inputs) -> str | None:
    """Codes of what is read."""
    if inputs.options.encoder is None or not inputs.sae.is_transcoder:
        return None
    return f"{inputs.options.encoder} encodes what the transcoder writes, and only x is known here."


def replaceable_site(inputs: Inputs) -> str | None:
    """A site that can be replaced.

    All of its effect on the model goes through what the SAE writes there.
    """
    if (n := inputs.run.config.n_sites) > 1:
        return f"The SAE reads {n} sites, which cannot be replaced at once."
    if Site.of(inputs.site).replaceable:
        return None
    return f"The skip connection goes past {inputs.site}, so a change there is only half of one."


def decoder(inputs: Inputs) -> str | None:
    """Decoder rows."""
    problem = inputs.sae.config.decoder_problem
    return problem and f"The SAE has no decoder rows: {problem}."

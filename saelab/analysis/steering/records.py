"""The steering scores of a run as typed values, readable without torch or a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from numpy import ndarray

from saelab import drawing
from saelab.analysis.steering.steering_file import read_arrays
from saelab.config import UsageError

ARRAYS = (
    *("latent", "sign", "input", "output", "n_examples"),
    *("rank", "probability", "lens", "peaks"),
)
"""The arrays of `SteeringScores` in steering.h5."""

HIGH_INPUT, HIGH_OUTPUT = 0.5, 0.01
"""The limits of `summary`: half of the tokens, and the paper's threshold of its filter."""


@dataclass(frozen=True)
class SteeringScores:
    """One row per latent, and for signed codes per pole.

    Attributes:
        latent, sign: the latent and its pole (1 or -1).
        input: S_in (Eq. 8) in [0, 1]; NaN with too few examples.
        output: S_out (Eq. 10) in [-1, 1], or P(steered) in the repository's form.
        n_examples: number of contexts behind `input`.
        rank: number of tokens more likely, under the steered model, than the best lens token.
        probability: the steered model's probability of that token.
        lens: the tokens that the latent raises most, best first.
        peaks: the commonest tokens on which it fires most; -1 after the last.
        vocabulary: every token as text.
        facts: options, prompt, model and digests, JSON-ready.
    """

    latent: Integer[ndarray, " row"]
    sign: Integer[ndarray, " row"]
    input: Float[ndarray, " row"]
    output: Float[ndarray, " row"]
    n_examples: Integer[ndarray, " row"]
    rank: Integer[ndarray, " row"]
    probability: Float[ndarray, " row"]
    lens: Integer[ndarray, "row k"]
    peaks: Integer[ndarray, "row peak"]
    vocabulary: tuple[str, ...]
    facts: dict[str, Any]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.latent)

    def row(self, latent: int, sign: int = 1) -> int:
        """The row of a latent's pole; UsageError if it was not scored."""
        found = np.flatnonzero((self.latent == latent) & (self.sign == sign))
        if not len(found):
            raise UsageError(f"Latent {latent} (pole {sign:+d}) is not among the scores.")
        return int(found[0])

    def best(self, n: int) -> list[int]:
        """The `n` rows with the highest output scores, best first."""
        return np.argsort(-self.output, kind="stable")[:n].tolist()

    def words(self, tokens: Integer[ndarray, " token"]) -> list[str]:
        """Tokens as text, without the empty places."""
        return [self.vocabulary[int(token)] for token in tokens if token >= 0]

    def record(self, row: int) -> dict[str, Any]:
        """One row in words, JSON-ready."""
        known = not np.isnan(self.input[row])
        return {
            "latent": int(self.latent[row]),
            "sign": int(self.sign[row]),
            "input": float(self.input[row]) if known else None,
            "output": float(self.output[row]),
            "n_examples": int(self.n_examples[row]),
            "rank": int(self.rank[row]),
            "probability": float(self.probability[row]),
            "promises": self.words(self.lens[row]),
            "fires_on": self.words(self.peaks[row]),
        }

    def summary(self) -> dict[str, float | int]:
        """How many rows score high on each score and on both, and how the scores relate.

        `correlation` is Pearson's over the rows with both scores. `lift` is the share with both
        high, divided by its value if the scores were independent.
        """
        known = ~np.isnan(self.input)
        high_in, high_out = self.input[known] >= HIGH_INPUT, self.output[known] >= HIGH_OUTPUT
        both, product = int((high_in & high_out).sum()), int(high_in.sum()) * int(high_out.sum())
        varied = known.sum() > 1 and self.input[known].std() > 0 and self.output[known].std() > 0
        figures: dict[str, float | int] = {
            "n_rows": len(self),
            "n_with_input": int(known.sum()),
            "high_output": int((self.output >= HIGH_OUTPUT).sum()),
            "high_input": int(high_in.sum()),
            "high_both": both,
        }
        if product:
            figures["lift"] = both * int(known.sum()) / product
        if varied:
            pair = np.corrcoef(self.input[known], self.output[known])
            figures["correlation"] = float(pair[0, 1])
        return figures

    figure = drawing.figure


def load_steering_scores(run: str | Path) -> SteeringScores:
    """The scores that `steering_scores` wrote in a run; needs no model.

    Raises:
        UsageError: there are no scores yet, or the file is damaged.
    """
    arrays, vocabulary, facts = read_arrays(steering_path(run), ARRAYS)
    return SteeringScores(**arrays, vocabulary=vocabulary, facts=facts)


def steering_path(run: str | Path) -> Path:
    """Path of a run's steering scores."""
    return Path(run) / "steering.h5"

"""Reading features: one latent's evidence as typed values."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Integer
from numpy import ndarray

from saelab.analysis.feature_file import FeatureFile
from saelab.analysis.histogram import edges
from saelab.config import UsageError

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Token:
    """One token of an example: its text, its place, and the latent's activation there."""

    text: str
    position: int
    activation: float


@dataclass(frozen=True)
class Example:
    """A piece of text around one firing.

    Attributes:
        value: activation at the peak.
        peak: which of `tokens` the peak is.
        document, context, position: where the peak stands in the corpus.
    """

    value: float
    tokens: list[Token]
    peak: int
    document: int
    context: int
    position: int


@dataclass(frozen=True)
class LatentRecord:
    """All that is known of one latent.

    Attributes:
        density: share of tokens on which it fires.
        max, mean: of |activation| over its firings.
        histogram: counts of activations between consecutive `histogram_edges`.
        examples: by kind: `top`, `random`, and `negative` for signed codes.
        raised, lowered: tokens with the logit effect of the decoder row on each; empty for sites
            without a direct path.
        neighbours: other latents with the cosine of their decoder rows.
    """

    latent: int
    n_fired: int
    n_negative: int
    n_tokens: int
    max: float
    mean: float
    histogram: Integer[ndarray, " bin"]
    histogram_edges: Float[ndarray, " edge"]
    examples: dict[str, list[Example]]
    raised: list[tuple[str, float]]
    lowered: list[tuple[str, float]]
    neighbours: list[tuple[int, float]]

    @property
    def density(self) -> float:
        """Share of tokens on which the latent fires."""
        return self.n_fired / self.n_tokens

    def figure(self) -> "go.Figure":
        """Activations and logit effects side by side (plotly)."""
        from saelab.analysis.figures import latent_figure

        return latent_figure(self)


class Features:
    """The features of a run; `features[latent]` reads one latent's bytes and no more."""

    def __init__(self, run: str | Path) -> None:
        self.file = FeatureFile(Path(run) / "features.h5")

    def __len__(self) -> int:
        return self.file.d_sae

    def __iter__(self) -> Iterator[LatentRecord]:
        return (self[latent] for latent in range(len(self)))

    def __getitem__(self, latent: int) -> LatentRecord:
        if not 0 <= latent < len(self):
            raise UsageError(f"There is no latent {latent}; the SAE has 0 to {len(self) - 1}.")
        file = self.file
        counts = file["histogram/counts"]
        return LatentRecord(
            latent=latent,
            n_fired=int(file["latent/n_fired"][latent]),
            n_negative=int(file["latent/n_negative"][latent]),
            n_tokens=int(file.facts["n_tokens"]),
            max=float(file["latent/max"][latent]),
            mean=float(file["latent/mean"][latent]),
            histogram=counts[latent],
            histogram_edges=edges(float(file["histogram/range"][latent]), counts.shape[1]),
            examples={kind: self._examples(kind, latent) for kind in file.kinds},
            raised=self._logits("top", latent),
            lowered=self._logits("bottom", latent),
            neighbours=[
                (int(other), float(cosine))
                for other, cosine in zip(
                    file["neighbours/latents"][latent],
                    file["neighbours/cosine"][latent],
                    strict=True,
                )
            ],
        )

    def table(self) -> dict[str, ndarray]:
        """Columns over all latents: density, max, mean, n_fired, n_negative."""
        fired = np.asarray(self.file["latent/n_fired"])
        return {
            "density": fired / self.file.facts["n_tokens"],
            "max": np.asarray(self.file["latent/max"]),
            "mean": np.asarray(self.file["latent/mean"]),
            "n_fired": fired,
            "n_negative": np.asarray(self.file["latent/n_negative"]),
        }

    def _logits(self, side: str, latent: int) -> list[tuple[str, float]]:
        name = f"logits/{side}_tokens"
        if name not in self.file:
            return []
        tokens, values = self.file[name][latent], self.file[f"logits/{side}_values"][latent]
        return [(self.file.token(int(t)), float(v)) for t, v in zip(tokens, values, strict=True)]

    def _examples(self, kind: str, latent: int) -> list[Example]:
        file = self.file
        contexts = file[f"{kind}/context"][latent]
        return [self._example(kind, latent, i) for i in range(len(contexts)) if contexts[i] >= 0]

    def _example(self, kind: str, latent: int, index: int) -> Example:
        file = self.file
        context = int(file[f"{kind}/context"][latent, index])
        position = int(file[f"{kind}/position"][latent, index])
        window = file[f"{kind}/window"][latent, index]
        reach = len(window) // 2
        line = file["corpus/tokens"][context]
        places = [p for p in range(position - reach, position + reach + 1) if 0 <= p < len(line)]
        tokens = [
            Token(file.token(int(line[p])), p, float(window[p - position + reach]))
            for p in places
            if line[p] >= 0
        ]
        return Example(
            value=float(file[f"{kind}/value"][latent, index]),
            tokens=tokens,
            peak=next(i for i, token in enumerate(tokens) if token.position == position),
            document=int(file["corpus/document"][context]),
            context=context,
            position=position,
        )

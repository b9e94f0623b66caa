"""Reading features: one latent's evidence as typed values."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int8, Integer
from numpy import ndarray

from saelab import drawing
from saelab.analysis.examples import Example, Examples, Stratum, Token
from saelab.analysis.feature_file import FeatureFile
from saelab.analysis.fires_on import fires_on
from saelab.analysis.histogram import edges
from saelab.config import UsageError
from saelab.training.run_paths import CHOSEN_FEATURES, FEATURES

__all__ = ["MASSIVE", "Example", "Features", "LatentRecord", "Stratum", "Token", "TokenLatent"]


MOST_NAMED = 50
"""Latents that a refusal names."""
MASSIVE = ("", "mostly", "only")
"""How a latent fires on massive activations (rows that the store's rule calls massive by their
norm). `only`: nowhere else; `mostly`: more than half of its firings, or of its top examples, are
there."""


class TokenLatent(NamedTuple):
    """A latent that fires on a token: how often, its mean |activation|, and its F1."""

    latent: int
    n: int
    mean: float
    f1: float


@dataclass(frozen=True)
class LatentRecord:
    """All evidence about one latent.

    Attributes:
        density: share of tokens on which it fires.
        max, mean: maximum and mean of |activation| over its firings.
        histogram: counts of activations between consecutive `histogram_edges`.
        examples: examples by kind: `top`, `random`, `strata`, `silent`; `negative` for signed
            codes; `near_miss` for SAEs with pre-activations. A kind is read at its first use.
        raised, lowered: tokens with the decoder row's logit effect on each; empty for sites without
            a direct path.
        neighbours, encoder_neighbours: similar latents with the cosine of their decoder rows, or of
            their encoder columns (empty for SAEs without an encoder).
        coactive: latents that fire on the same tokens, with their Jaccard index.
        mean_square: E[a^2] over all tokens.
        skew, kurtosis: about zero, over all tokens: E[a^3] / E[a^2]^1.5, E[a^4] / E[a^2]^2.
        strata: the firings divided into strata of equal size.
        head_weights: each head's share of the decoder row (hook_z sites).
        massive: whether it fires `only` or `mostly` on massive activations (see `MASSIVE`); empty
            if neither, None if unknown.
    """

    latent: int
    n_fired: int
    n_negative: int
    n_tokens: int
    max: float
    mean: float
    histogram: Integer[ndarray, " bin"]
    histogram_edges: Float[ndarray, " edge"]
    examples: Mapping[str, list[Example]]
    raised: list[tuple[str, float]]
    lowered: list[tuple[str, float]]
    neighbours: list[tuple[int, float]]
    encoder_neighbours: list[tuple[int, float]] = field(default_factory=list)
    coactive: list[tuple[int, float]] = field(default_factory=list)
    mean_square: float = 0.0
    skew: float = 0.0
    kurtosis: float = 0.0
    strata: list[Stratum] = field(default_factory=list)
    head_weights: list[float] = field(default_factory=list)
    massive: str | None = None

    @property
    def density(self) -> float:
        """Share of tokens on which the latent fires."""
        return self.n_fired / self.n_tokens

    figure = drawing.figure


def features_file(run: str | Path) -> Path:
    """The file of a run's features: of all latents, or where that is missing, of the chosen ones.

    It may not exist.
    """
    every, chosen = (Path(run) / name for name in (FEATURES, CHOSEN_FEATURES))
    return chosen if chosen.is_file() and not every.is_file() else every


class Features:
    """The features of a run; `features[latent]` reads only one latent's bytes.

    With `chosen`, those of the latents that `saelab features --latents` collected: `numbers` are
    their numbers, and `len` is how many there are.
    """

    def __init__(self, run: str | Path, *, chosen: bool = False) -> None:
        self.file = FeatureFile(Path(run) / (CHOSEN_FEATURES if chosen else FEATURES))
        self.numbers: tuple[int, ...] | None = None
        if chosen:
            with self.file.reading():
                self.numbers = tuple(self.file["latent/number"].tolist())

    @classmethod
    def of(cls, run: str | Path) -> "Features":
        """Those of all latents; where these were not collected, those of the chosen ones."""
        return cls(run, chosen=features_file(run) == Path(run) / CHOSEN_FEATURES)

    def __len__(self) -> int:
        return self.file.d_sae

    @property
    def latents(self) -> Sequence[int]:
        """The latents that there is evidence of, in order."""
        return range(len(self)) if self.numbers is None else self.numbers

    @cached_property
    def _rows(self) -> dict[int, int]:
        """The row of each chosen latent."""
        return {latent: row for row, latent in enumerate(self.numbers or ())}

    def __iter__(self) -> Iterator[LatentRecord]:
        return (self[latent] for latent in self.latents)

    def __getitem__(self, latent: int) -> LatentRecord:
        place = self.place(latent)
        with self.file.reading():
            return replace(self._record(place), latent=latent)

    def place(self, latent: int) -> int:
        """The row of a latent in the file and in `table`.

        Raises:
            UsageError: there is no such latent, or no evidence of it.
        """
        self.check([latent])
        return latent if self.numbers is None else self._rows[latent]

    def check(self, latents: Sequence[int]) -> None:
        """Refuse latents without evidence here; the command that adds them names them all.

        Raises:
            UsageError: there is no such latent, or no evidence of it.
        """
        known = self.latents if self.numbers is None else self._rows
        missing = list(dict.fromkeys(latent for latent in latents if latent not in known))
        if not missing:
            return
        d_sae = len(self) if self.numbers is None else int(self.file.facts["of_latents"])
        if wrong := [latent for latent in missing if not 0 <= latent < d_sae]:
            raise UsageError(f"There is no latent {wrong[0]}; the SAE has 0 to {d_sae - 1}.")
        run = shlex.quote(self.file.path.parent.as_posix())
        more = " ..." if len(missing) > MOST_NAMED else ""
        named = " ".join(map(str, missing[:MOST_NAMED])) + more
        which = f"latent {missing[0]}" + (
            f" and {len(missing) - 1} more of these" if missing[1:] else ""
        )
        raise UsageError(
            f"{self.file.path} has no {which}; `saelab features {run} --latents {named}` adds "
            f"{'them' if missing[1:] else 'it'}."
        )

    def fired(self, latent: int) -> int:
        """On how many tokens a latent fires; raises UsageError as `place` does."""
        return int(self.file["latent/n_fired"][self.place(latent)])

    def _record(self, latent: int) -> LatentRecord:
        file = self.file
        counts = file["histogram/counts"]
        strata = self._strata(latent)
        return LatentRecord(
            latent=latent,
            n_fired=int(file["latent/n_fired"][latent]),
            n_negative=int(file["latent/n_negative"][latent]),
            n_tokens=int(file.facts["n_tokens"]),
            max=float(file["latent/max"][latent]),
            mean=float(file["latent/mean"][latent]),
            histogram=counts[latent],
            histogram_edges=edges(float(file["histogram/range"][latent]), counts.shape[1]),
            examples=Examples(file, latent, strata),
            raised=self._logits("top", latent),
            lowered=self._logits("bottom", latent),
            neighbours=self._pairs("neighbours", "cosine", latent),
            encoder_neighbours=self._pairs("encoder", "cosine", latent),
            coactive=self._pairs("coactive", "jaccard", latent),
            mean_square=float(file["latent/mean_square"][latent]),
            skew=float(file["latent/skew"][latent]),
            kurtosis=float(file["latent/kurtosis"][latent]),
            strata=strata,
            head_weights=self._row("heads/weights", latent),
            massive=None if (kind := self.massive) is None else MASSIVE[kind[latent]],
        )

    @cached_property
    def massive(self) -> Int8[ndarray, " latent"] | None:
        """For each latent, the index in `MASSIVE` of how it fires on massive activations.

        None if unknown: the file is of an older version, or the store was missing.
        """
        file = self.file
        if "latent/n_massive" not in file:
            return None
        fired, there = file["latent/n_fired"], file["latent/n_massive"]
        examples = [file[f"{k}/context"] >= 0 for k in ("top", "negative") if k in file.kinds]
        n_top = sum(part.sum(axis=1) for part in examples)
        mostly = (2 * there > fired) | (2 * file["latent/n_massive_top"] > n_top)
        return np.where((there > 0) & (there == fired), 2, (there > 0) & mostly).astype(np.int8)

    def table(self) -> dict[str, ndarray]:
        """Columns over all `latents`: density, max, mean, n_fired, n_negative.

        And, if known, massive: the share of its firings on massive activations.
        """
        fired = np.asarray(self.file["latent/n_fired"])
        known = "latent/n_massive" in self.file
        return {
            **({"massive": self.file["latent/n_massive"] / np.maximum(1, fired)} if known else {}),
            "density": fired / self.file.facts["n_tokens"],
            "max": np.asarray(self.file["latent/max"]),
            "mean": np.asarray(self.file["latent/mean"]),
            "n_fired": fired,
            "n_negative": np.asarray(self.file["latent/n_negative"]),
        }

    def fires_on(self, latent: int) -> str:
        """One line on what the latent fires on, from its examples alone; empty if it never fires.

        Raises:
            UsageError: there is no such latent, or the file is damaged.
        """
        return fires_on(self.file, self.place(latent))

    def latents_on(self, token: int | str) -> list[TokenLatent]:
        """The best detectors of a token among the latents, the best first; none of chosen ones.

        Raises:
            UsageError: the token does not exist.
        """
        file = self.file
        n_tokens = len(file["vocabulary/offsets"]) - 1
        if isinstance(token, str):
            if token not in file.vocabulary:
                raise UsageError(f"The vocabulary of {n_tokens} tokens has no token {token!r}.")
            token = file.vocabulary.index(token)
        if not 0 <= token < n_tokens:
            raise UsageError(f"There is no token {token}; the vocabulary has 0 to {n_tokens - 1}.")
        if self.numbers is not None:  # They were not compared with all others.
            return []
        names = ("latents", "n", "mean", "f1")
        with file.reading():
            part = slice(*file["index/start"][token : token + 2].tolist())
            columns = [file[f"index/{name}"][part].tolist() for name in names]
            return [TokenLatent(*row) for row in zip(*columns, strict=True)]

    def _strata(self, latent: int) -> list[Stratum]:
        if "strata/edges" not in self.file:
            return []
        bounds = self._row("strata/edges", latent)
        populations = self.file["strata/population"][latent].tolist()
        slots = self.file["strata/context"].shape[1] // len(populations)
        return [
            Stratum(bounds[i], bounds[i + 1], population, range(i * slots, (i + 1) * slots))
            for i, population in enumerate(populations)
        ]

    def _row(self, name: str, latent: int) -> list[Any]:
        return self.file[name][latent].tolist() if name in self.file else []

    def _pairs(self, group: str, measure: str, latent: int) -> list[tuple[int, float]]:
        others = self._row(f"{group}/latents", latent)
        values = self._row(f"{group}/{measure}", latent)
        return [(int(o), v) for o, v in zip(others, values, strict=True) if o >= 0]

    def _logits(self, side: str, latent: int) -> list[tuple[str, float]]:
        name = f"logits/{side}_tokens"
        if name not in self.file:
            return []
        tokens, values = self.file[name][latent], self.file[f"logits/{side}_values"][latent]
        return [(self.file.token(int(t)), float(v)) for t, v in zip(tokens, values, strict=True)]

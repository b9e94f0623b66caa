"""Reading examples: pieces of text with one latent's activations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from typing_extensions import override

from saelab.analysis.feature_file import FeatureFile


class Token(NamedTuple):
    """One token of an example: its text, its place, and the latent's activation there.

    A character made of several tokens is the text of the first one; the others' text is empty.
    """

    text: str
    position: int
    activation: float


@dataclass(frozen=True)
class Example:
    """A piece of text around one firing, or around a token on which the latent is silent.

    Attributes:
        value: activation at the peak; the pre-activation for a near miss, 0 for a silent example.
        tokens: the text around the peak, with the latent's activations.
        peak: index of the peak in `tokens`.
        document, context, position: the peak's place in the corpus.
        weight: number of firings that the example represents; 1 if it was not sampled.
        closeness: for a near miss: the pre-activation's share of the value that would have fired.
    """

    value: float
    tokens: list[Token]
    peak: int
    document: int
    context: int
    position: int
    weight: float = 1.0
    closeness: float | None = None


@dataclass(frozen=True)
class Stratum:
    """A part of a latent's firings, by |activation|.

    Attributes:
        low, high: the stratum reaches from `low` to below `high`; the last includes `high`.
        population: number of firings in it.
        slots: slots of the examples of kind `strata` that were sampled from it.
    """

    low: float
    high: float
    population: int
    slots: range


class Examples(Mapping[str, list[Example]]):
    """A latent's examples by kind; each kind is read at its first use."""

    def __init__(self, file: FeatureFile, latent: int, strata: list[Stratum]) -> None:
        self._file = file
        self._latent = latent
        self._strata = strata
        self._read: dict[str, list[Example]] = {}

    @override
    def __getitem__(self, kind: str) -> list[Example]:
        if kind not in self._file.kinds:
            raise KeyError(kind)
        if kind not in self._read:
            with self._file.reading():
                self._read[kind] = read_examples(self._file, kind, self._latent, self._strata)
        return self._read[kind]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._file.kinds)

    @override
    def __len__(self) -> int:
        return len(self._file.kinds)


def read_examples(
    file: FeatureFile, kind: str, latent: int, strata: list[Stratum]
) -> list[Example]:
    """The examples of one kind, in the order of the file."""
    contexts = file[f"{kind}/context"][latent].tolist()
    n_kept = sum(context >= 0 for context in contexts)
    if not n_kept:
        return []
    columns = _columns(file, kind, latent, len(contexts))
    weights = _weights(kind, contexts, strata)
    reach = int(file.facts["reach"])
    return [
        Example(
            value=value,
            tokens=(tokens := _tokens(file, context, range(at - reach, at + reach + 1), window)),
            peak=next(i for i, token in enumerate(tokens) if token.position == at),
            document=int(file["corpus/document"][context]),
            context=context,
            position=at,
            weight=weight,
            closeness=closeness,
        )
        for context, at, value, closeness, window, weight in zip(
            contexts, *columns, weights, strict=True
        )
        if context >= 0
    ]


def _columns(file: FeatureFile, kind: str, latent: int, n: int) -> tuple[list[Any], ...]:
    """Position, value, closeness and window of each slot."""
    positions = file[f"{kind}/position"][latent].tolist()
    values = _row(file, f"{kind}/value", latent) or [0.0] * n
    closeness = _row(file, f"{kind}/closeness", latent) or [None] * n
    return positions, values, closeness, _windows(file, kind, latent, positions)


def _row(file: FeatureFile, name: str, latent: int) -> list[float]:
    return file[name][latent].tolist() if name in file else []


def _windows(
    file: FeatureFile, kind: str, latent: int, positions: list[int]
) -> list[dict[int, float]]:
    """The activation at each position around each peak, if there is one."""
    if f"{kind}/window_start" not in file:
        return [{} for _ in positions]
    part = slice(*file[f"{kind}/window_start"][latent : latent + 2].tolist())
    offsets = iter(file[f"{kind}/window_offset"][part].tolist())
    values = iter(file[f"{kind}/window_value"][part].tolist())
    counts = file[f"{kind}/window_count"][latent].tolist()
    return [
        {at + next(offsets): next(values) for _ in range(count)}
        for at, count in zip(positions, counts, strict=True)
    ]


def _weights(kind: str, contexts: list[int], strata: list[Stratum]) -> list[float]:
    """The number of firings that each example represents."""
    if kind == "strata":
        groups = [(stratum.slots, stratum.population) for stratum in strata]
    elif kind == "random":
        groups = [(range(len(contexts)), sum(stratum.population for stratum in strata))]
    else:
        return [1.0] * len(contexts)
    weights = []
    for slots, population in groups:
        n_kept = sum(contexts[slot] >= 0 for slot in slots)
        weights += [population / max(1, n_kept)] * len(slots)
    return weights


def _tokens(
    file: FeatureFile, context: int, places: range, window: dict[int, float]
) -> list[Token]:
    first = max(0, places.start)
    ids = file["corpus/tokens"][context, first : places.stop].tolist()
    real = [(place, token) for place, token in enumerate(ids, first) if token >= 0]
    pieces = file.table.pieces(token for _, token in real)
    return [
        Token(text, place, window.get(place, 0.0))
        for (place, _), text in zip(real, pieces, strict=True)
    ]

"""features.h5: everything that the app shows of a latent, readable without model or SAE.

All datasets are contiguous and uncompressed, so a reader maps the file and reads only the bytes of
one latent; saelab/formats/hdf5_file.py says how the file is sealed. There are F latents, N examples
of a kind, S strata, and V tokens in the vocabulary:

    latent/n_fired, n_negative   int64 [F]      firings, and those with a negative value
    latent/n_massive, n_massive_top  int64 [F]  of the firings, and of the kinds top and negative,
                                                those on massive rows; missing where not known
    latent/max, mean             float32 [F]    of |value| over the firings
    latent/mean_square           float32 [F]    E[a^2] over all tokens, silent ones included
    latent/skew, kurtosis        float32 [F]    E[a^3] / E[a^2]^1.5, E[a^4] / E[a^2]^2: all tokens
    histogram/range              float32 [F]    the histogram spans 0, or -range, to +range
    histogram/counts             uint32 [F, 64 or 128]  linear bins; 128: both signs
    strata/edges                 float32 [F, S + 1]  quantiles of |value| over the firings
    strata/population            uint32 [F, S]  firings from one edge to below the next
    KIND/context, position       int [F, N]     where the example's peak is; context -1: no example
    KIND/value                   float32 [F, N] at the peak
    KIND/window_start            int64 [F + 1]  each latent's part of the last two
    KIND/window_count            int [F, N]     how much of that each example takes, in order
    KIND/window_offset, _value   int, float16   the firings around the peak, by distance from it
    near_miss/closeness          float16 [F, N] share of the activation that would have fired
    logits/{top,bottom}_tokens   int32 [F, 12]  tokens most raised and most lowered
    logits/{top,bottom}_values   float32 [F, 12]
    neighbours/latents, cosine   int32, float32 [F, 8]  by |cosine| of the decoder rows
    encoder/latents, cosine      int32, float32 [F, 8]  by |cosine| of the encoder columns
    coactive/latents, jaccard    int32, float32 [F, 8]  by |both fire| / |either fires|; -1: none
    heads/weights                float32 [F, heads]  shares of the decoder row's norm (hook_z)
    index/start                  int64 [V + 1]  each token's part of the next four
    index/latents, n             uint32         the latents that tell the token best, how often
    index/mean, f1               float32, float16  they fire on it, mean |value| there, F1
    corpus/tokens                int32 [C, L]   the contexts that were read, -1 for padding
    corpus/document              int64 [C]
    vocabulary/bytes, offsets    uint8, int64   every token's name as UTF-8
    written/tokens               int32 [W]      tokens that write something else than their name
    written/bytes, offsets       uint8, int64   what they write: bytes of a character, mostly

KIND is one of

    top        the largest, one of each context
    negative   the most negative, one of each context, for signed codes
    strata     from each of S parts of equal population by |value| as many at random; slots of the
               first part come first
    random     a fair sample of all firings
    near_miss  contexts without a firing, where the latent came closest; `value` is the
               pre-activation; only for SAEs that have them
    silent     contexts without a firing, at random; no values

The last two have no windows. The root's attribute `facts` is JSON: format, hook, model, corpus,
counts, digests, options, and what is exact.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from saelab.config import UsageError
from saelab.formats.hdf5_file import Hdf5Arrays, read_hdf5, write_hdf5
from saelab.formats.regular import MissingFileError
from saelab.lm.token_table import TokenTable

FORMAT = "saelab-features/2"
KINDS = ("top", "negative", "strata", "random", "near_miss", "silent")
BY_LATENT = {
    "latent",
    "histogram",
    "strata",
    "logits",
    "neighbours",
    "encoder",
    "coactive",
    "heads",
}
"""Groups of arrays with a row for each latent, beside those of every kind of example."""
ONE_AXIS = {"latent", "index", "vocabulary", "written"}
FLAT = {"histogram/range", "corpus/document"}
"""Arrays with one axis, in groups where others have two."""
WINDOWS = {"window_start", "window_offset", "window_value"}
"""The arrays of a kind of example that have no row for each latent."""


def write_features(path: Path, arrays: Mapping[str, ndarray], facts: dict[str, Any]) -> None:
    """Write `arrays` (dataset name to values) and `facts` to `path`, whole or not at all."""
    write_hdf5(path, arrays, {**facts, "format": FORMAT})


class FeatureFile:
    """The datasets of a features.h5 as memory maps, by name."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.arrays: Hdf5Arrays = read_hdf5(self.path, "features file")
        except MissingFileError:
            raise UsageError(f"{self.path} does not exist; run `saelab features` first.") from None
        self.facts = self.arrays.facts
        if self.facts.get("format") != FORMAT:
            raise UsageError(
                f"{self.path} has the format {str(self.facts.get('format'))[:60]!r}, this saelab "
                f"reads {FORMAT!r}; run `saelab features` again."
            )
        if problem := _problem(self.arrays):
            raise UsageError(f"{self.path} is not a whole features file: {problem}.")

    def __getitem__(self, name: str) -> ndarray:
        if name not in self.arrays:
            raise UsageError(f"{self.path} is not a whole features file: it has no {name}.")
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self["latent/n_fired"])

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of example in the file."""
        return tuple(kind for kind in KINDS if f"{kind}/context" in self)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A context that refuses parts that do not match in one sentence: the file is untrusted."""
        try:
            yield
        except UsageError:
            raise
        except (LookupError, ValueError, TypeError, ArithmeticError, StopIteration) as error:
            raise UsageError(
                f"{self.path} is not a whole features file: its parts do not fit each other."
            ) from error

    @cached_property
    def table(self) -> TokenTable:
        """The names of all tokens; invalid UTF-8 shows as the replacement character."""
        with self.reading():
            names = [part.decode("utf-8", errors="replace") for part in self._texts("vocabulary")]
            # If some are words without a space, the text has a space between them.
            gap = "" if bool((self["vocabulary/bytes"] == ord(" ")).any()) else " "
            if "written/tokens" not in self:
                return TokenTable(names, gap=gap)
            odd = self["written/tokens"].tolist()
            return TokenTable(names, dict(zip(odd, self._texts("written"), strict=True)), gap)

    @cached_property
    def token_counts(self) -> ndarray:
        """How often each token stands in the contexts that were read, `[vocabulary]`."""
        with self.reading():
            tokens = self["corpus/tokens"].ravel()
            return np.bincount(tokens[tokens >= 0], minlength=len(self["vocabulary/offsets"]) - 1)

    @property
    def vocabulary(self) -> Sequence[str]:
        """Every token's name."""
        return self.table.names

    def token(self, token_id: int) -> str:
        """A token's name."""
        return self.vocabulary[token_id]

    def _texts(self, group: str) -> list[bytes]:
        return unpack_texts(self[f"{group}/bytes"], self[f"{group}/offsets"])


def unpack_texts(packed: ndarray, offsets: ndarray) -> list[bytes]:
    """The texts in `packed`; text n reaches from offset n to offset n + 1.

    Raises:
        ValueError: the offsets are not ascending inside `packed`.
    """
    if packed.dtype != np.uint8 or packed.ndim != 1 or offsets.ndim != 1 or not len(offsets):
        raise ValueError("its texts are not bytes")
    places = offsets.tolist()
    if places[0] < 0 or places[-1] > len(packed) or any(a > b for a, b in pairwise(places)):
        raise ValueError("its texts do not lie one after another")
    text = packed.tobytes()
    return [text[a:b] for a, b in pairwise(places)]


def _problem(arrays: Hdf5Arrays) -> str | None:
    """What is missing or misshapen, before any array is read."""
    for name, least in (("n_tokens", 1), ("reach", 0)):
        value = arrays.facts.get(name, least)
        if type(value) is not int or value < least:
            return f"its {name} is {str(value)[:20]}"
    shape = arrays.kind("latent/n_fired")[1] if "latent/n_fired" in arrays else ()
    d_sae = shape[0] if shape else None
    for name in arrays:
        if problem := _shape_problem(name, arrays.kind(name)[1], d_sae):
            return problem
    return None


def _shape_problem(name: str, shape: tuple[int, ...], d_sae: int | None) -> str | None:
    group, _, last = name.partition("/")
    flat = group in ONE_AXIS or name in FLAT or last in WINDOWS
    if group not in {*BY_LATENT, *ONE_AXIS, "corpus"}:
        return None
    if len(shape) != (1 if flat else 2):
        return f"{name} has the shape {list(shape)}"
    if d_sae is None or group not in BY_LATENT or last in WINDOWS - {"window_start"}:
        return None
    if shape[0] != d_sae + (last == "window_start"):
        return f"{name} has {shape[0]} rows, there are {d_sae} latents"
    return None


def pack_vocabulary(
    tokens: Sequence[str], written: Mapping[int, bytes] | None = None
) -> dict[str, ndarray]:
    """The datasets of the vocabulary: names, and the text of tokens whose name differs from it."""
    names = _packed("vocabulary", [token.encode("utf-8", errors="replace") for token in tokens])
    if not written:
        return names
    odd = _packed("written", list(written.values()))
    return names | odd | {"written/tokens": np.array(list(written), dtype=np.int32)}


def _packed(group: str, parts: Sequence[bytes]) -> dict[str, ndarray]:
    offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    joined = np.frombuffer(b"".join(parts), dtype=np.uint8)
    return {f"{group}/bytes": joined, f"{group}/offsets": offsets}

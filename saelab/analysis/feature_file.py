"""features.h5: everything the app shows of a latent, readable without the model or the SAE.

All datasets are contiguous and uncompressed, so that a reader maps the file and touches only the
bytes of the latent it is asked for. F latents, N examples of a kind, S strata, V tokens of the
vocabulary:

    latent/n_fired, n_negative   int64 [F]      firings, and those with a negative value
    latent/n_massive, n_massive_top  int64 [F]  of the firings, and of the kinds top and negative,
                                                those on massive rows; missing where not known
    latent/max, mean             float32 [F]    of |value| over the firings
    latent/mean_square           float32 [F]    E[a^2] over all tokens, silent ones included
    latent/skew, kurtosis        float32 [F]    E[a^3] / E[a^2]^1.5 and E[a^4] / E[a^2]^2, likewise
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
    negative   the most negative, likewise, for signed codes
    strata     from each of S parts of equal population by |value| as many at random; slots of the
               first part come first
    random     a fair sample of all firings
    near_miss  contexts without a firing, where the latent came closest; `value` is the
               pre-activation; only for SAEs that have them
    silent     contexts without a firing, at random; no values

The last two have no windows. The root's attribute `facts` is JSON: format, hook, model, corpus,
counts, digests, options, and what is exact.
"""

import io
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy import ndarray

from saelab.config import UsageError
from saelab.files import atomic_write
from saelab.lm.token_table import TokenTable

FORMAT = "saelab-features/2"
KINDS = ("top", "negative", "strata", "random", "near_miss", "silent")


def write_features(path: Path, arrays: Mapping[str, ndarray], facts: dict[str, Any]) -> None:
    """Write `arrays` (dataset name to values) and `facts` to `path`, whole or not at all."""
    write_arrays(path, arrays, {**facts, "format": FORMAT})


def write_arrays(path: Path, arrays: Mapping[str, ndarray], facts: dict[str, Any]) -> None:
    """Write contiguous datasets and the JSON attribute `facts`, whole or not at all."""
    # HDF5 builds the file in memory: on a full disk it would crash the process, not raise.
    image = io.BytesIO()
    with h5py.File(image, "w", libver=("v110", "v114")) as h5:
        h5.attrs["facts"] = json.dumps(facts, allow_nan=False)
        for name, values in arrays.items():
            h5.create_dataset(name, data=values)
    atomic_write(path, image.getbuffer())


def map_arrays(path: Path) -> tuple[dict[str, ndarray], dict[str, Any]]:
    """The datasets of a file of `write_arrays` as memory maps, and its facts.

    Raises:
        OSError, KeyError, ValueError: it is missing, damaged, or has a dataset that cannot be
            mapped.
    """
    with h5py.File(path, "r", locking=False) as h5:
        facts: dict[str, Any] = json.loads(str(h5.attrs["facts"]))
        return {name: _mapped(path, h5, name) for name in _names(h5)}, facts


class FeatureFile:
    """The datasets of a features.h5 as memory maps, by name."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._arrays, self.facts = map_arrays(self.path)
        except FileNotFoundError:
            raise UsageError(f"{self.path} does not exist; run `saelab features` first.") from None
        except (OSError, KeyError, ValueError) as error:
            raise UsageError(f"{self.path} is not a whole features file: {error}.") from error
        if self.facts.get("format") != FORMAT:
            raise UsageError(
                f"{self.path} has the format {self.facts.get('format')!r}, this saelab reads "
                f"{FORMAT!r}; run `saelab features` again."
            )

    def __getitem__(self, name: str) -> ndarray:
        return self._arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self["latent/n_fired"])

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which kinds of example the file holds."""
        return tuple(kind for kind in KINDS if f"{kind}/context" in self)

    @cached_property
    def table(self) -> TokenTable:
        """The names of all tokens; invalid UTF-8 shows as the replacement character."""
        names = [part.decode("utf-8", errors="replace") for part in self._texts("vocabulary")]
        # Words without a space among them are words of a text that puts one between them.
        gap = "" if bool((self["vocabulary/bytes"] == ord(" ")).any()) else " "
        if "written/tokens" not in self:
            return TokenTable(names, gap=gap)
        odd = self["written/tokens"].tolist()
        return TokenTable(names, dict(zip(odd, self._texts("written"), strict=True)), gap)

    @property
    def vocabulary(self) -> Sequence[str]:
        """Every token's name."""
        return self.table.names

    def token(self, token_id: int) -> str:
        """A token's name."""
        return self.vocabulary[token_id]

    def _texts(self, group: str) -> list[bytes]:
        text, ends = self[f"{group}/bytes"].tobytes(), self[f"{group}/offsets"].tolist()
        return [text[a:b] for a, b in pairwise(ends)]


def pack_vocabulary(
    tokens: Sequence[str], written: Mapping[int, bytes] | None = None
) -> dict[str, ndarray]:
    """The datasets of the vocabulary: names, and what tokens write that have another name."""
    names = _packed("vocabulary", [token.encode("utf-8", errors="replace") for token in tokens])
    if not written:
        return names
    odd = _packed("written", list(written.values()))
    return names | odd | {"written/tokens": np.array(list(written), dtype=np.int32)}


def _packed(group: str, parts: Sequence[bytes]) -> dict[str, ndarray]:
    offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    joined = np.frombuffer(b"".join(parts), dtype=np.uint8)
    return {f"{group}/bytes": joined, f"{group}/offsets": offsets}


def _names(h5: h5py.File) -> list[str]:
    """Every dataset, without following links out of the file."""
    names = []
    for group_name in map(str, h5):
        group = _hard(h5, group_name)
        if not isinstance(group, h5py.Group):
            raise ValueError(f"{group_name} is not a group")
        names += [f"{group_name}/{name}" for name in map(str, group) if _hard(group, name)]
    return names


def _hard(parent: h5py.Group, name: str) -> object:
    if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link")
    return parent[name]


def _mapped(path: Path, h5: h5py.File, name: str) -> ndarray:
    dataset = h5[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "iuf":
        raise ValueError(f"{name} is not a numeric dataset")
    if dataset.size == 0:
        return np.zeros(dataset.shape, dataset.dtype)
    offset = dataset.id.get_offset()
    if offset is None or dataset.external or dataset.is_virtual:
        raise ValueError(f"{name} is not stored contiguously in the file")
    if offset + dataset.nbytes > path.stat().st_size:
        raise ValueError(f"{name} reaches past the end of the file")
    # A plain array over the map: indexing a memmap element by element is slow.
    return np.asarray(np.memmap(path, dataset.dtype, "r", offset, dataset.shape))

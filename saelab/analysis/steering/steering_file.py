"""steering.h5: the steering scores of a run, readable without the model or the SAE.

All datasets are contiguous. N rows: the F latents and, for signed codes, their F negative poles.

    score/latent, sign       int64 [N]      which latent, and which pole: 1 or -1
    score/input              float64 [N]    S_in; NaN: too few examples
    score/output             float32 [N]    S_out
    score/n_examples         int64 [N]      contexts behind S_in
    score/rank               int64 [N]      of the best lens token when steered, 0 the likeliest
    score/probability        float32 [N]    of that token
    score/lens               int64 [N, k]   tokens that the decoder row promises, best first
    score/peaks              int32 [N, 5]   commonest tokens of the strongest firings, -1 for none
    vocabulary/bytes, offsets  uint8, int64  every token as UTF-8

The root's attribute `facts` is JSON: format, prompt, options, a_max, model, digests of the run's
configuration and weights, provenance.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
from numpy import ndarray

from saelab.analysis.feature_file import _mapped, _names, pack_vocabulary
from saelab.config import UsageError
from saelab.files import atomic_write

FORMAT = "saelab-steering/1"


def write_arrays(
    path: Path, arrays: Mapping[str, ndarray], vocabulary: Sequence[str], facts: dict[str, Any]
) -> None:
    """Write scores (named without their group), vocabulary and facts, whole or not at all."""
    # HDF5 builds the file in memory: on a full disk it would crash the process, not raise.
    image = io.BytesIO()
    with h5py.File(image, "w", libver=("v110", "v114")) as h5:
        h5.attrs["facts"] = json.dumps({**facts, "format": FORMAT}, allow_nan=False)
        for name, values in arrays.items():
            h5.create_dataset(f"score/{name}", data=values)
        for name, values in pack_vocabulary(list(vocabulary)).items():
            h5.create_dataset(name, data=values)
    atomic_write(path, image.getbuffer())


def read_arrays(
    path: Path, names: Sequence[str]
) -> tuple[dict[str, ndarray], tuple[str, ...], dict[str, Any]]:
    """The named scores, the vocabulary and the facts.

    Raises:
        UsageError: the file is missing, damaged, or of another format.
    """
    try:
        with h5py.File(path, "r", locking=False) as h5:
            facts: dict[str, Any] = json.loads(str(h5.attrs["facts"]))
            stored = {name: _mapped(path, h5, name) for name in _names(h5)}
        arrays = {name: stored[f"score/{name}"] for name in names}
        vocabulary = _unpack(stored["vocabulary/bytes"], stored["vocabulary/offsets"])
        _check(arrays, len(vocabulary))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; run `saelab steer RUN --all` first.") from None
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is not a whole steering file: {error}.") from error
    if facts.get("format") != FORMAT:
        raise UsageError(
            f"{path} has the format {facts.get('format')!r}, this saelab reads {FORMAT!r}; run "
            "`saelab steer RUN --all` again."
        )
    return arrays, vocabulary, facts


def _check(arrays: Mapping[str, ndarray], n_tokens: int) -> None:
    """Refuse arrays that do not fit each other: the file may come from anywhere."""
    if len({len(values) for values in arrays.values()}) > 1:
        raise ValueError("its columns differ in length")
    for name in ("lens", "peaks"):
        tokens = arrays[name]
        if tokens.ndim != 2 or (tokens.size and not -1 <= tokens.min() <= tokens.max() < n_tokens):
            raise ValueError(f"score/{name} has tokens outside the vocabulary")


def _unpack(packed: ndarray, offsets: ndarray) -> tuple[str, ...]:
    text = packed.tobytes()
    places = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    return tuple(text[start:stop].decode("utf-8", errors="replace") for start, stop in places)

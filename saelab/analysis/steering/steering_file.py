"""steering.h5: the steering scores of a run, readable without the model or the SAE.

All datasets are contiguous. The N rows are the F latents and, for signed codes, their F negative
poles.

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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy import ndarray

from saelab.analysis.feature_file import pack_vocabulary, unpack_texts
from saelab.config import UsageError
from saelab.formats.hdf5_file import Hdf5Arrays, read_format, write_hdf5

FORMAT = "saelab-steering/1"
TABLES = ("lens", "peaks")
"""Scores with two axes, whose values are tokens."""
FLOATS = ("input", "output", "probability")


def write_arrays(
    path: Path, arrays: Mapping[str, ndarray], vocabulary: Sequence[str], facts: dict[str, Any]
) -> None:
    """Write scores (named without their group), vocabulary and facts, whole or not at all."""
    scores = {f"score/{name}": values for name, values in arrays.items()}
    write_hdf5(path, scores | pack_vocabulary(list(vocabulary)), {**facts, "format": FORMAT})


def read_arrays(
    path: Path, names: Sequence[str]
) -> tuple[dict[str, ndarray], tuple[str, ...], dict[str, Any]]:
    """The named scores, the vocabulary and the facts.

    Raises:
        UsageError: the file is missing, damaged, or of another format.
    """
    stored = read_format(path, "steering file", FORMAT, "saelab steer RUN --all")
    try:
        _check_shapes(stored, names)
        arrays = {name: stored[f"score/{name}"] for name in names}
        texts = unpack_texts(stored["vocabulary/bytes"], stored["vocabulary/offsets"])
        vocabulary = tuple(text.decode("utf-8", errors="replace") for text in texts)
        _check_tokens(arrays, len(vocabulary))
    except UsageError:
        raise
    except (KeyError, ValueError) as error:
        raise UsageError(f"{path} is not a whole steering file: {error}.") from error
    return arrays, vocabulary, stored.facts


def _check_shapes(stored: Hdf5Arrays, names: Sequence[str]) -> None:
    """Refuse arrays that do not match: the file is untrusted."""
    kinds = {name: stored.kind(f"score/{name}") for name in names}
    for name, (kind, shape) in kinds.items():
        if len(shape) != (2 if name in TABLES else 1) or (kind == "f") != (name in FLOATS):
            raise ValueError(f"score/{name} has the shape {list(shape)} or another kind of numbers")
    if len({shape[0] for _, shape in kinds.values()}) > 1:
        raise ValueError("its columns differ in length")


def _check_tokens(arrays: Mapping[str, ndarray], n_tokens: int) -> None:
    for name in TABLES:
        tokens = arrays[name]
        if tokens.size and not -1 <= tokens.min() <= tokens.max() < n_tokens:
            raise ValueError(f"score/{name} has tokens outside the vocabulary")

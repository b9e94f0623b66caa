"""What a latent's examples share, from files whose truth is written by hand."""

import numpy as np
import pytest

from saelab.analysis.feature_file import pack_vocabulary, write_features
from saelab.analysis.records import Features
from saelab.config import UsageError

ING = ["running", "jumping", "ringing", "singing"]
B = ["bat", "boy", "ball", "by"]
NUMBERS = ["12", "7", "1999", "44"]
MIXED = ["bat", "him", "7", "singing", "her"]
HOSTILE = "\u202e<b>\n"
WORDS = ["<s>", "her", "him", "to", "the", HOSTILE, *ING, *NUMBERS, *B]
FILLER = WORDS.index("the")


def features(tmp_path, peaks, before=None, places=None, raised=None, negative=False):
    """A latent that fires on these words, one a context of six tokens; and a silent one."""
    n = len(peaks)
    places = places or [1 + i % 4 for i in range(n)]
    tokens = np.full((n, 6), FILLER, np.int32)
    tokens[:, 0] = 0
    for row, (word, place) in enumerate(zip(peaks, places, strict=True)):
        tokens[row, place] = WORDS.index(word)
        if before:
            tokens[row, place - 1] = WORDS.index(before)
    kind = "negative" if negative else "top"
    arrays = {
        "latent/n_fired": np.array([n, 0]),
        "latent/n_negative": np.array([n if negative else 0, 0]),
        **{
            f"{k}/{name}": np.array([values if k == kind else absent, absent])
            for k in ("top", "negative")
            for name, values, absent in (
                ("context", list(range(n)), [-1] * n),
                ("position", places, [0] * n),
            )
        },
        "corpus/tokens": tokens,
        "corpus/document": np.arange(n),
        **pack_vocabulary(WORDS),
    }
    if raised:
        arrays["logits/top_tokens"] = np.array([[WORDS.index(w) for w in raised]] * 2, np.int32)
    write_features(tmp_path / "features.h5", arrays, {"n_tokens": 6 * n, "reach": 2})
    return Features(tmp_path)


@pytest.mark.parametrize(
    ("peaks", "given", "line"),
    [
        (["her"] * 5 + ["him"] * 3, {}, "“her”, “him”"),
        (ING * 2, {}, "words with the ending “ing”: “running”, “jumping”, “ringing”, “singing”"),
        (B, {}, "words with the first letter “b”: “bat”, “boy”, “ball”, “by”"),
        (NUMBERS, {}, "numbers: “12”, “7”, “1999”, “44”"),
        (MIXED, {"before": "to", "places": [1, 2, 3, 4, 2]},
         "what stands behind “to”: “bat”, “him”, “7”, “singing” and 1 other"),
        (MIXED, {"places": [3] * 5},
         "position 3 of a text, e.g. “bat”, “him”, “7”, “singing” and 1 other"),
        ([*MIXED, "by"], {}, "“bat”, “him”, “7”, “singing” and 2 others"),
        (["her"], {"negative": True}, "“her”"),
        (["her"], {"raised": ["him", "to", "the", "bat"]}, "“her”; raises “him”, “to”, “the”"),
    ],
)  # fmt: skip
def test_it_says_what_the_examples_share(peaks, given, line, tmp_path):
    found = features(tmp_path, peaks, **given)
    assert found.fires_on(0) == f"fires on: {line}"
    assert found.fires_on(1) == ""


def test_a_neighbour_that_stands_everywhere_says_nothing(tmp_path):
    assert "behind" not in features(tmp_path, MIXED, places=[2, 3, 4, 2, 3]).fires_on(0)


def test_a_hostile_token_stays_on_its_line_and_a_latent_must_exist(tmp_path):
    found = features(tmp_path, [HOSTILE])
    assert found.fires_on(0) == "fires on: “⟨202E⟩<b>”"
    with pytest.raises(UsageError, match="There is no latent 2"):
        found.fires_on(2)


def test_a_peak_outside_its_context_is_one_sentence(tmp_path):
    found = features(tmp_path, ["her", "him"])
    arrays = {name: np.array(found.file[name]) for name in found.file.arrays}
    write_features(
        tmp_path / "features.h5",
        arrays | {"top/position": np.full((2, 2), 90)},
        {"n_tokens": 12, "reach": 2},
    )
    with pytest.raises(UsageError, match="do not fit each other"):
        Features(tmp_path).fires_on(0)

"""What a reader gets, from a file written by hand."""

import numpy as np
import pytest

from saelab.analysis.feature_file import pack_vocabulary, write_features
from saelab.analysis.records import Features
from saelab.config import UsageError

WORDS = ["<bos>", " a", " b", " c"]


@pytest.fixture
def features(tmp_path):
    """Two latents; the first fires four times in two strata, with one example of each."""
    columns = {name: np.zeros(2, np.float32) for name in ("max", "mean", "mean_square", "skew")}
    arrays = {
        "latent/n_fired": np.array([4, 0]),
        "latent/n_negative": np.array([0, 0]),
        "latent/kurtosis": np.array([3.5, 0], np.float32),
        **{f"latent/{name}": values for name, values in columns.items()},
        "histogram/range": np.array([2, 1], np.float32),
        "histogram/counts": np.zeros((2, 64), np.uint32),
        "strata/edges": np.array([[0.5, 1, 2], [0, 0, 0]], np.float32),
        "strata/population": np.array([[1, 3], [0, 0]], np.uint32),
        "strata/context": np.array([[1, -1, 0, 1], [-1] * 4], np.int32),
        "strata/position": np.array([[1, 0, 3, 2], [0] * 4], np.int8),
        "strata/value": np.array([[0.5, 0, 2, 1], [0] * 4], np.float32),
        "strata/window_start": np.array([0, 4, 4]),
        "strata/window_count": np.array([[2, 0, 1, 1], [0] * 4], np.int8),
        "strata/window_offset": np.array([0, 1, 0, 0], np.int8),
        "strata/window_value": np.array([0.5, 1, 2, 1], np.float16),
        "silent/context": np.array([[0], [1]], np.int32),
        "silent/position": np.array([[1], [2]], np.int8),
        "coactive/latents": np.array([[1, -1], [0, -1]], np.int32),
        "coactive/jaccard": np.array([[0.25, 0], [0.25, 0]], np.float32),
        "neighbours/latents": np.array([[1], [0]], np.int32),
        "neighbours/cosine": np.array([[0.5], [0.5]], np.float32),
        "index/start": np.array([0, 0, 2, 2, 3]),
        "index/latents": np.array([1, 0, 0], np.uint32),
        "index/n": np.array([3, 1, 2], np.uint32),
        "index/mean": np.array([1.5, 2.5, 0.5], np.float32),
        "index/f1": np.array([0.75, 0.5, 1], np.float16),
        "corpus/tokens": np.array([[0, 1, 2, 3], [0, 3, 2, -1]], np.int32),
        "corpus/document": np.array([7, 9]),
        **pack_vocabulary(WORDS),
    }
    write_features(tmp_path / "features.h5", arrays, {"n_tokens": 100, "reach": 1})
    return Features(tmp_path)


def test_an_example_has_its_text_its_activations_and_what_it_stands_for(features):
    first, second, third = features[0].examples["strata"]
    assert [token.text for token in first.tokens] == ["<bos>", " c", " b"]
    assert [token.activation for token in first.tokens] == [0, 0.5, 1]
    assert (first.peak, first.document, first.context, first.position) == (1, 9, 1, 1)
    assert [first.weight, second.weight, third.weight] == [1, 1.5, 1.5]
    # Context 0 ends at the peak, and context 1 in padding.
    assert [token.text for token in second.tokens] == [" b", " c"]
    assert [token.text for token in third.tokens] == [" c", " b"]


def test_silent_examples_have_text_without_activations(features):
    (example,) = features[1].examples["silent"]
    assert [token.activation for token in example.tokens] == [0, 0]
    assert example.value == 0


def test_the_kinds_are_those_of_the_file_and_others_are_missing(features):
    examples = features[0].examples
    assert list(examples) == ["strata", "silent"]
    assert "top" not in examples
    assert examples.get("negative", []) == []
    assert examples["strata"] is examples["strata"]


def test_the_figures_of_a_latent_are_read(features):
    record = features[0]
    assert record.density == 0.04
    assert record.kurtosis == 3.5
    assert record.coactive == [(1, 0.25)]
    assert record.encoder_neighbours == []
    assert record.head_weights == []
    assert [(part.low, part.high, part.population) for part in record.strata] == [
        (0.5, 1, 1),
        (1, 2, 3),
    ]
    assert record.histogram_edges[[0, -1]].tolist() == [0, 2]


def test_a_token_leads_to_its_latents(features):
    assert [tuple(entry) for entry in features.latents_on(" a")] == [
        (1, 3, 1.5, 0.75),
        (0, 1, 2.5, 0.5),
    ]
    assert features.latents_on(0) == []
    assert features.latents_on(3)[0].latent == 0


@pytest.mark.parametrize("token", ["nowhere", 4, -1])
def test_a_token_that_is_not_in_the_vocabulary_is_refused(features, token):
    with pytest.raises(UsageError, match="vocabulary"):
        features.latents_on(token)


@pytest.mark.parametrize("latent", [2, -1])
def test_a_latent_out_of_range_is_refused_with_the_range(features, latent):
    with pytest.raises(UsageError, match=f"no latent {latent}; the SAE has 0 to 1"):
        features[latent]

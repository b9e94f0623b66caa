"""A head's score is the sum over pairs of components, rotary positions included."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from saelab.analysis.attention.qk import score_pairs
from saelab.config import UsageError
from saelab.figures.attention import score_figure
from saelab.lm.linear.paths import Norm
from saelab.lm.record import layer_record


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 2), (2, 3)])
def test_pairs_sum_to_the_score(frozen, layer, head):
    record = frozen.record.layers[layer]
    expected = frozen.weights.layers[layer].scores(record.q, record.k)[0, head]
    for dest, source in ((6, 0), (6, 4), (5, 5)):
        pairs = score_pairs(frozen, layer, head, dest, source)
        assert pairs.score == pytest.approx(float(expected[dest, source]), abs=1e-10)
        assert pairs.pattern == float(record.pattern[0, head, dest, source])
        assert float(pairs.by_query.sum()) == pytest.approx(pairs.score, abs=1e-10)
        assert float(pairs.by_key.sum()) == pytest.approx(pairs.score, abs=1e-10)


def test_biases_of_the_norms_of_queries_and_keys_are_among_the_constants(frozen):
    block, record = frozen.weights.layers[1], frozen.record.layers[1]
    gain, bias = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    block = replace(
        block,
        q_norm=Norm(gain, bias, 1e-5, centred=True),
        k_norm=Norm(bias, gain, 1e-5, centred=False, joint=True),
    )
    done = layer_record(block, record.resid_pre, record.mlp_raw)
    weights, layers = list(frozen.weights.layers), list(frozen.record.layers)
    weights[1], layers[1] = block, done
    other = replace(
        frozen,
        weights=replace(frozen.weights, layers=tuple(weights)),
        record=replace(frozen.record, layers=tuple(layers)),
    )
    expected = block.scores(done.q, done.k)[0, 2, 6, 3]
    assert score_pairs(other, 1, 2, 6, 3).score == pytest.approx(float(expected), abs=1e-10)


def test_without_the_constants_they_do_not(frozen):
    pairs = score_pairs(frozen, 1, 0, 6, 2)
    has_biases = frozen.weights.W_pos is not None
    assert (abs(float(pairs.products[:-1, :-1].sum()) - pairs.score) > 1e-3) == has_biases


def test_a_pair_is_the_product_of_its_two_parts(frozen):
    # A head's own q and k, scaled one component at a time.
    pairs = score_pairs(frozen, 1, 1, 6, 2)
    assert torch.linalg.matrix_rank(pairs.products) <= 4
    query, key, part = pairs.top(1)[0]
    assert abs(part) == float(pairs.products.abs().max())
    assert query in pairs.queries
    assert key in pairs.keys


def test_heads_and_positions_that_do_not_exist_are_refused(frozen):
    with pytest.raises(
        UsageError, match=r"no head 1.7; the model has layers 0 to 2 of heads 0 to 3"
    ):
        score_pairs(frozen, 1, 7, 6, 2)
    with pytest.raises(UsageError, match="at position 2 cannot look at 6"):
        score_pairs(frozen, 1, 1, 2, 6)


def test_the_figure_has_a_bar_a_pair(frozen):
    traces: Any = score_figure(score_pairs(frozen, 1, 1, 6, 2), n=5).data
    (bars,) = traces
    assert len(bars.x) == 5

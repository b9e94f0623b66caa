"""Head attribution by weights."""

from typing import Any

import pytest
import torch
from analysis.steering.cases import random_sae

from saelab.analysis.attention.heads import head_attribution
from saelab.config import UsageError
from saelab.sae.topk import TopKConfig


def test_shares_sum_to_one_and_are_those_of_the_norms():
    sae = random_sae("topk")
    shares = head_attribution(sae, 4).shares
    torch.testing.assert_close(shares.sum(1), torch.ones(24, dtype=torch.float64))
    row = sae.W_dec[5].double()
    norms = [float(row[4 * h : 4 * h + 4].norm()) for h in range(4)]
    torch.testing.assert_close(shares[5], torch.tensor(norms, dtype=torch.float64) / sum(norms))


def test_a_latent_of_one_coordinate_belongs_to_one_head():
    sae = TopKConfig(d_sae=16, k=16).build(16)
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(16))
    found = head_attribution(sae, 4)
    assert torch.equal(found.shares, torch.eye(4).double().repeat_interleave(4, 0))
    assert found.n_heads_used(0.9).unique().tolist() == [1]
    assert sorted(found.top_latents(2, 4).tolist()) == [8, 9, 10, 11]


def test_a_row_of_zeros_belongs_to_no_head():
    sae = random_sae("topk")
    sae.W_dec[3] = 0
    assert head_attribution(sae, 4).shares[3].tolist() == [0, 0, 0, 0]


def test_a_width_that_is_no_multiple_of_the_heads_is_refused():
    with pytest.raises(UsageError, match="width 16 does not read 3 heads"):
        head_attribution(random_sae("topk"), 3)


def test_the_figure_has_a_bar_a_head():
    traces: Any = head_attribution(random_sae("topk"), 4).figure(3).data
    (bars,) = traces
    assert len(bars.y) == 4

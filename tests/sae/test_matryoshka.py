"""What arXiv 2503.17547 says of Matryoshka SAEs; their prefixes by two ways."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab.config import UsageError
from saelab.sae.batch_topk import BatchTopKConfig
from saelab.sae.context import LossContext
from saelab.sae.matryoshka import MatryoshkaConfig, group_prefixes, sample_prefixes
from saelab.testing.steps import loss_of
from saelab.types import ActivationBatch

CONTEXT = LossContext(8.0)


def build(**options):
    config = MatryoshkaConfig.model_validate({"d_sae": 64, "k": 5} | options)
    return config.build(8, torch.Generator().manual_seed(0))


@pytest.fixture
def x():
    return torch.randn(32, 8, generator=torch.Generator().manual_seed(1))


def test_one_group_is_batch_top_k(x):
    batch = BatchTopKConfig(d_sae=64, k=5).build(8, torch.Generator().manual_seed(0))
    expected = loss_of(batch, x, CONTEXT).total
    torch.testing.assert_close(loss_of(build(fractions=(1.0,)), x, CONTEXT).total, expected)


def test_every_prefix_equals_its_dense_reconstruction_from_scratch(x):
    sae = build()
    codes = loss_of(sae, x, CONTEXT).codes
    prefixes = group_prefixes(sae.config.fractions, 64)
    z = codes.dense()
    for q, error in zip(
        prefixes, sae.prefix_errors(ActivationBatch(x), codes, prefixes), strict=True
    ):
        x_hat = z[:, :q] @ sae.W_dec[:q] + sae.b_dec
        torch.testing.assert_close(error, (x - x_hat).pow(2).sum(-1).mean())


def test_the_loss_is_the_mean_or_the_sum_of_the_prefixes_errors(x):
    sae = build()
    codes = loss_of(sae, x, CONTEXT).codes
    errors = sae.prefix_errors(ActivationBatch(x), codes, group_prefixes(sae.config.fractions, 64))
    torch.testing.assert_close(loss_of(sae, x, CONTEXT).total, errors.mean() / 8)
    torch.testing.assert_close(
        loss_of(build(prefix_loss="sum"), x, CONTEXT).total, errors.sum() / 8
    )


def test_a_latents_gradient_comes_only_from_prefixes_that_contain_it(x):
    sae = build()
    prefixes = group_prefixes(sae.config.fractions, 64)
    codes = loss_of(sae, x, CONTEXT).codes
    sae.prefix_errors(ActivationBatch(x), codes, prefixes)[1].backward()
    assert not sae.W_dec.grad[prefixes[1] :].any()
    assert sae.W_dec.grad[: prefixes[1]].any()


@given(d_sae=st.integers(48, 5000), n=st.integers(1, 6))
def test_group_prefixes_rise_and_end_at_the_width(d_sae, n):
    shares = tuple(1 / n for _ in range(n))
    prefixes = group_prefixes(shares, d_sae)
    assert prefixes[-1] == d_sae
    assert list(prefixes) == sorted(set(prefixes))


def test_the_default_groups_are_those_of_the_papers_code():
    fractions = MatryoshkaConfig(d_sae=65536).fractions
    assert group_prefixes(fractions, 65536) == (2048, 6144, 14336, 30720, 65536)


@pytest.mark.parametrize("fractions", [(0.5, 0.4), (1.5, -0.5), ()])
def test_shares_that_make_no_whole_are_refused(fractions):
    with pytest.raises(UsageError, match="must be positive and sum to 1"):
        build(fractions=fractions)


def test_a_group_without_latents_is_refused():
    with pytest.raises(UsageError, match=r"d_sae=16 .* empty; widen"):
        build(d_sae=16)


@given(seed=st.integers(0, 10**6), d_sae=st.integers(10, 300), n=st.integers(1, 10))
def test_random_prefixes_are_distinct_rise_and_end_at_the_width(seed, d_sae, n):
    prefixes = sample_prefixes(d_sae, n, torch.Generator().manual_seed(seed))
    assert len(prefixes) == n
    assert list(prefixes) == sorted(set(prefixes))
    assert prefixes[-1] == d_sae
    assert prefixes[0] >= 1


def test_short_random_prefixes_are_more_frequent_as_the_square_root_says():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([sample_prefixes(100, 2, generator)[0] for _ in range(4000)])
    share = float((drawn <= 25).float().mean())
    # P(length <= t) = sqrt(t) / sqrt(d_sae - 1), here 5 / sqrt(99).
    assert abs(share - 5 / 99**0.5) < 0.03


def test_random_prefixes_differ_by_step_and_repeat_for_the_same_step(x):
    sae = build(random_prefixes=3)
    first, again, other = (
        loss_of(sae, x, LossContext(8.0, step=step, seed=4)).total for step in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_more_random_prefixes_than_latents_are_refused():
    with pytest.raises(UsageError, match="random_prefixes=65 exceeds d_sae=64"):
        build(random_prefixes=65)

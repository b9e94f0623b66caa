"""Feature Choice (arXiv 2411.02124): latents that choose their tokens, and its thresholds."""

import pytest
import torch

from saelab.config import UsageError
from saelab.kernels.torch.threshold import EMA_OF_EACH
from saelab.kernels.torch.zipf import zipf_budgets
from saelab.sae.context import LossContext
from saelab.sae.feature_choice import FeatureChoiceConfig
from saelab.sae.mutual_choice import MutualChoiceConfig
from saelab.testing.steps import loss_of
from saelab.types import SparseCodes

D_IN, D_SAE, K, BATCH = 8, 24, 3, 64


def build(**options):
    config = FeatureChoiceConfig.model_validate(
        {"d_sae": D_SAE, "k": K, "mutual_share": 0.0} | options
    )
    return config.build(D_IN, torch.Generator().manual_seed(0))


def rows(n=BATCH, seed=1):
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed))


def test_each_latent_fires_in_as_many_rows_as_its_rank_allows_where_it_is_largest():
    sae, x = build(), rows()
    sae.b_enc.data.fill_(10.0)
    sae.density.copy_(torch.rand(D_SAE, generator=torch.Generator().manual_seed(2)))
    codes = loss_of(sae, x, LossContext(1.0)).codes
    budgets = zipf_budgets(D_SAE, sae.config.usage_rules(), BATCH).counts
    counts = codes.firing_counts()
    assert torch.equal(counts[sae.usage.ranked()], budgets)
    assert int(counts.sum()) == K * BATCH
    dense, pre_acts = codes.dense(), sae.pre_activations(x)
    least = torch.where(dense > 0, dense, torch.inf).amin(0)
    assert bool((torch.where(dense > 0, -torch.inf, pre_acts).amax(0) <= least).all())


def test_a_latent_with_few_positive_pre_activations_fires_only_there():
    sae, x = build(), rows()
    sae.b_enc.data[0] = -1.5
    positive = int((sae.pre_activations(x)[:, 0] > 0).sum())
    counts = loss_of(sae, x, LossContext(1.0)).codes.firing_counts()
    assert 0 < positive < int(zipf_budgets(D_SAE, sae.config.usage_rules(), BATCH).counts[0])
    assert int(counts[0]) == positive


def test_with_an_exponent_of_zero_all_latents_fire_equally_often():
    sae = build(zipf_exponent=0.0)
    counts = loss_of(sae, rows(), LossContext(1.0)).codes.firing_counts()
    assert counts.tolist() == [8] * D_SAE


def test_ranks_stay_while_their_densities_are_those_of_the_law():
    sae = build()
    sae.b_enc.data.fill_(10.0)
    sae.density.copy_(sae.density.flip(0))
    before = sae.usage.ranked()
    for seed in range(50):
        sae.observe(loss_of(sae, rows(seed=seed), LossContext(1.0)).codes)
    assert torch.equal(sae.usage.ranked(), before)


def test_a_batch_in_which_not_every_latent_can_fire_is_refused_with_the_least_that_is_enough():
    config = FeatureChoiceConfig(d_sae=1000, k=32)
    config.check_batch(32)
    with pytest.raises(UsageError, match="batch_size=31 allows 992 firings; take --batch-size 32"):
        config.check_batch(31)


def test_a_batch_that_is_too_small_all_the_same_gives_the_first_ranks_one_row_each():
    counts = loss_of(build(), rows(2), LossContext(1.0)).codes.firing_counts()
    assert counts[K * 2 :].tolist() == [0] * (D_SAE - K * 2)


def test_a_latents_threshold_follows_its_own_smallest_code():
    sae = build()
    codes = [
        SparseCodes(torch.tensor([[v, w]]), torch.tensor([[0, 1]]), D_SAE)
        for v, w in [(2.0, 0.0), (3.0, 0.5)]
    ]
    sae.observe(codes[0])
    assert sae.threshold[:2].tolist()[0] == 2.0
    assert bool(sae.threshold[1:].isnan().all())
    sae.observe(codes[1])
    torch.testing.assert_close(sae.threshold[:2], torch.tensor([3 - EMA_OF_EACH, 0.5]))


def test_a_latent_that_never_fired_does_not_fire_at_inference():
    sae = build()
    sae.observe(SparseCodes(torch.tensor([[0.1, 0.2]]), torch.tensor([[3, 5]]), D_SAE))
    assert set(sae.encode(rows()).indices[sae.encode(rows()).active].tolist()) == {3, 5}


def test_at_inference_each_latent_is_about_as_frequent_as_in_training():
    sae = build()
    for seed in range(150):
        sae.observe(loss_of(sae, rows(seed=seed), LossContext(1.0)).codes)
    sae.calibrate(rows(10_000, seed=998))
    codes = sae.encode(rows(10_000, seed=999))
    density = codes.firing_counts() / 10_000
    assert codes.mean_l0() == pytest.approx(K, rel=0.02)
    assert float((density / sae.density).log().abs().max()) < 0.3


def test_the_first_part_of_a_run_is_mutual_choice():
    sae, mutual = build(mutual_share=0.5), MutualChoiceConfig(d_sae=D_SAE, k=K)
    same = mutual.build(D_IN, torch.Generator().manual_seed(0))
    for step, equal in [(0, True), (4, True), (5, False)]:
        context = LossContext(1.0, step=step, n_steps=10)
        ours, theirs = (loss_of(each, rows(), context).codes for each in (sae, same))
        assert torch.equal(ours.dense(), theirs.dense()) == equal


def test_it_starts_from_mutual_choice_with_its_densities_and_thresholds():
    source = MutualChoiceConfig(d_sae=D_SAE, k=K).build(D_IN, torch.Generator().manual_seed(3))
    source.observe(loss_of(source, rows(), LossContext(1.0)).codes)
    sae = build()
    sae.take_threshold(source, rows())
    assert torch.equal(sae.density, source.density)
    assert bool((sae.threshold == source.threshold).all())

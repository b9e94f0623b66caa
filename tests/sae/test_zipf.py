"""Zipf-Mandelbrot's law of densities: budgets, ranks, and latents that are under-used."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab.kernels.rules import UsageRules
from saelab.kernels.torch.zipf import Usage, expected_density, zipf_budgets, zipf_shares
from saelab.sae.batch_topk import BatchTopKConfig
from saelab.sae.context import LossContext
from saelab.sae.mutual_choice import MutualChoiceConfig
from saelab.testing.steps import loss_of
from saelab.types import SparseCodes

D_IN, D_SAE, K, BATCH = 8, 24, 3, 64


def rules(**changes: Any):
    usual: dict[str, Any] = {"k": K, "exponent": 1.0, "shift": 2.7, "share": 0.5, "window": 1000}
    return UsageRules(**(usual | changes))


def rows(n=BATCH, seed=1):
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed))


def build(**options):
    config = MutualChoiceConfig.model_validate({"d_sae": D_SAE, "k": K} | options)
    return config.build(D_IN, torch.Generator().manual_seed(0))


def batch_topk():
    return BatchTopKConfig(d_sae=D_SAE, k=K).build(D_IN, torch.Generator().manual_seed(0))


@given(
    d_sae=st.integers(1, 300),
    batch=st.integers(1, 200),
    share=st.floats(0.01, 1),
    exponent=st.floats(0, 3),
    shift=st.floats(0, 10),
)
def test_budgets_are_within_the_batch_fall_with_rank_and_have_the_asked_sum(
    d_sae, batch, share, exponent, shift
):
    k = max(1.0, share * d_sae)
    wanted = rules(k=k, exponent=exponent, shift=shift)
    counts = zipf_budgets(d_sae, wanted, batch).counts
    total = min(int(k * batch), d_sae * batch)
    assert int(counts.sum()) == total
    assert int(counts.max()) <= batch
    assert int(counts.min()) >= (1 if total >= d_sae else 0)
    assert bool((counts.diff() <= 0).all())


def test_budgets_that_no_bound_touches_are_the_law_rounded():
    counts = zipf_budgets(50, rules(k=2), 4000).counts
    shares = zipf_shares(50, 1.0, 2.7)
    assert float((counts - 8000 * shares).abs().max()) < 1
    assert float(shares[0] / shares[9]) == pytest.approx(12.7 / 3.7)


def test_the_classes_of_budgets_are_all_that_have_one_by_power_of_two():
    budgets = zipf_budgets(40, rules(k=0.5), 60)
    assert [rank for a, b, _ in budgets.classes for rank in range(a, b)] == list(range(30))
    budgets = zipf_budgets(40, rules(k=4), 60)
    for first, stop, most in budgets.classes:
        assert most == budgets.counts[first]
        assert int(budgets.counts[stop - 1]) > most / 2 or most == 1


def test_all_latents_are_as_frequent_as_expected_at_first_and_none_is_under_used():
    sae = build()
    sae.usage.mark_()
    assert not bool(sae.underused.any())
    torch.testing.assert_close(sae.density, expected_density(D_SAE, rules()))


def usage_of(density, **changes):
    density = torch.tensor(density)
    return Usage(rules(**changes), density, torch.zeros(len(density), dtype=torch.bool))


def test_a_latent_is_under_used_below_the_share_of_its_rank_and_of_the_mean():
    """By rank 0.75, 0.5 and 0.25 are expected, and half of that, or of the mean, is enough."""
    law = {"k": 1.5, "exponent": -1.0, "shift": -4.0}
    assert expected_density(3, rules(**law)).tolist() == pytest.approx([0.75, 0.5, 0.25])
    for density, found in [
        ((0.13, 0.8, 0.5), [False, False, False]),
        ((0.12, 0.8, 0.5), [True, False, False]),
        ((0.26, 0.26, 0.26), [False, False, False]),
        ((0.24, 0.2, 0.0), [True, True, True]),
    ]:
        usage = usage_of(density, **law)
        usage.mark_()
        assert usage.underused.tolist() == found


def test_the_density_is_a_running_mean_of_the_share_of_rows():
    usage = usage_of([0.5, 0.5, 0.5], window=20)
    codes = SparseCodes(torch.tensor([[1.0, 0.0], [2.0, -3.0]]), torch.tensor([[0, 1], [0, 2]]), 3)
    usage.follow_(codes.values, codes.indices, 2)
    torch.testing.assert_close(usage.density, torch.tensor([0.55, 0.45, 0.5]))


def test_latents_are_looked_at_every_sixteen_steps():
    sae = build(density_window=BATCH)
    nothing = SparseCodes(torch.zeros(BATCH, 1), torch.zeros(BATCH, 1, dtype=torch.int64), D_SAE)
    for _ in range(15):
        sae.observe(nothing)
    assert not bool(sae.underused.any())
    sae.observe(nothing)
    assert bool(sae.underused.all())


def test_mutual_choice_is_batch_topk_with_the_same_total():
    x = rows()
    ours, theirs = build(), batch_topk()
    context = LossContext(1.0)
    assert torch.equal(
        loss_of(ours, x, context).codes.dense(), loss_of(theirs, x, context).codes.dense()
    )
    ours.calibrate(x)
    theirs.calibrate(x)
    assert torch.equal(ours.encode(x).dense(), theirs.encode(x).dense())


def test_aux_zipf_is_aux_k_of_the_dead_and_the_under_used():
    """Half of the latents have hardly fired; two others are dead."""
    sae, plain = build(), batch_topk()
    sae.underused[::2] = True
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[[1, 3]] = True
    ours = loss_of(sae, rows(4), LossContext(1.0, dead))
    either = dead | (torch.arange(D_SAE) % 2 == 0)
    assert torch.equal(ours.total, loss_of(plain, rows(4), LossContext(1.0, either)).total)
    assert "aux_k" in loss_of(sae, rows(4), LossContext(1.0)).parts


def test_without_aux_zipf_only_dead_latents_are_revived():
    sae = build(aux_zipf=0.0)
    sae.density.zero_()
    sae.usage.mark_()
    assert "aux_k" not in loss_of(sae, rows(4), LossContext(1.0)).parts


def test_the_window_lets_the_rarest_latent_fire_twenty_times():
    sae = build()
    window = sae.config.usage_rules().window
    assert window * float(expected_density(D_SAE, rules())[-1]) == pytest.approx(20, rel=0.01)


def test_densities_come_with_the_weights_of_another_sae_or_are_counted():
    source = batch_topk()
    source.calibrate(rows())
    sae = build()
    sae.take_threshold(source, rows())
    counted = source.encode(rows()).firing_counts() / BATCH
    torch.testing.assert_close(sae.density, counted)
    other = build()
    other.take_threshold(sae, rows(seed=2))
    assert torch.equal(other.density, sae.density)

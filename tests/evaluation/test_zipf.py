"""The fitted law of densities: a planted one is found, and its budgets are those of the law."""

import pytest
import torch

from saelab.evaluation.zipf import fit_zipf
from saelab.kernels.torch.zipf import zipf_shares


@pytest.mark.parametrize(("exponent", "shift"), [(1.0, 2.7), (0.6, 0.0), (1.5, 40.0)])
def test_a_planted_law_is_found_whatever_the_order_and_the_silent_latents(exponent, shift):
    density = 3 * zipf_shares(2000, exponent, shift)
    mixed = torch.cat([torch.zeros(50), density])[torch.randperm(2050)]
    law = fit_zipf(mixed.tolist())
    assert law is not None
    assert law.exponent == pytest.approx(exponent, rel=0.02)
    assert law.shift == pytest.approx(shift, rel=0.1, abs=0.05)
    assert law.r_squared == pytest.approx(1)


def test_two_kinds_of_latents_fit_badly_and_few_latents_not_at_all():
    law = fit_zipf([0.5] * 30 + [0.001] * 300)
    assert law is not None
    assert law.r_squared < 0.9
    assert fit_zipf([0.1] * 19 + [0.0] * 100) is None
    equal = fit_zipf([0.1] * 30)
    assert equal is not None
    assert equal.exponent == pytest.approx(0, abs=1e-6)

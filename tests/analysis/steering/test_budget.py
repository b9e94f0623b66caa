"""Directions are compared at the same KL, and none beats the best distribution there is."""

import math

import pytest
import torch
from analysis.steering.cases import PROMPT, steerable
from hypothesis import given
from hypothesis import strategies as st

from saelab.analysis.steering.budget import Steered, Trial, at_budget, ideal_mass
from saelab.analysis.steering.concepts import ConceptPrompts
from saelab.lm.prompt import encode_prompt


@given(st.floats(0.5, 4), st.floats(1e-3, 1e3), st.floats(0.01, 10))
def test_the_length_of_a_given_kl_is_found(power, factor, budget):
    tried = []

    def effect(length: float) -> Steered:
        tried.append(length)
        return Steered(length, factor * length**power, length)

    found = at_budget(effect, budget)
    if abs(math.log((budget / factor) ** (1 / power) / 0.5)) < 3:
        assert found.kl == pytest.approx(budget, rel=0.011)
    assert found.length == tried[-1]
    assert len(tried) <= 13


def test_a_step_is_found_between_its_sides():
    found = at_budget(lambda length: Steered(length, 0.0 if length < 3 else 10 * length, 0.0), 1.0)
    assert found.length == pytest.approx(3, rel=0.2)


def test_where_no_length_reaches_the_budget_the_longest_says_how_far_it_got():
    found = at_budget(lambda length: Steered(length, 0.3, 0.1), 1.0)
    assert (found.kl, found.gain) == (0.3, 0.1)
    assert found.length > 10


@given(st.floats(1e-9, 0.9), st.floats(0.01, 3))
def test_the_ideal_mass_has_the_kl_of_the_budget_and_beats_random_distributions(plain, budget):
    c = torch.tensor([plain], dtype=torch.float64)
    m = float(ideal_mass(c, budget))
    kl = plain * math.log(plain / m) + (1 - plain) * math.log((1 - plain) / (1 - m))
    # Where m is near 1, the rounding of 1 - m is what is left.
    assert kl == pytest.approx(budget, rel=1e-3)
    assert m > plain


def test_the_ideal_beats_every_distribution_of_that_kl():
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(6, generator=generator, dtype=torch.float64).log_softmax(0)
    says = torch.tensor([True, False, True, False, False, False])
    for _ in range(40):
        other = (base + torch.randn(6, generator=generator, dtype=torch.float64)).log_softmax(0)
        budget = float((base.exp() * (base - other)).sum())
        ideal = float(ideal_mass(base.exp()[says].sum()[None], budget))
        assert float(other.exp()[says].sum()) <= ideal + 1e-6


@pytest.fixture(scope="module")
def trial(perturbed_lm) -> Trial:
    tokens = encode_prompt(perturbed_lm, PROMPT)
    padded = torch.stack([tokens, torch.cat([tokens[:3], torch.zeros(3, dtype=torch.long)])])
    says = torch.zeros(perturbed_lm.info.d_vocab, dtype=torch.bool)
    says[[3, 8]] = True
    prompts = ConceptPrompts(padded, torch.tensor([5, 2]), says)
    return Trial.of(steerable(perturbed_lm), prompts, 0.5, rms_norm=4.0)


def test_the_effect_is_that_of_the_direction_at_each_prompt_s_own_end(trial):
    direction = torch.randn(16, generator=torch.Generator().manual_seed(2))
    found = trial.effect(direction, 0.7)
    model, kls, gains = trial.host, [], []
    for row, last in enumerate(trial.prompts.last.tolist()):
        tokens = trial.prompts.tokens[row : row + 1, : last + 1]

        def steer(x):
            x = x.clone()
            x[0, -1] += 0.7 * 4.0 * direction / direction.norm()
            return x

        base, steered = (
            model.lm.logits(tokens, edits)[0, -1].double().log_softmax(-1)
            for edits in ({}, {model.writes: steer})
        )
        kls.append(float((base.exp() * (base - steered)).sum()))
        gains.append(float((steered.exp() - base.exp())[[3, 8]].sum()))
    assert found.kl == pytest.approx(sum(kls) / 2, abs=1e-4)
    assert found.gain == pytest.approx(sum(gains) / 2, abs=1e-4)


def test_at_the_budget_gains_are_below_the_ideal_s(trial):
    for seed in range(4):
        direction = torch.randn(16, generator=torch.Generator().manual_seed(seed))
        found = trial.at_budget(direction)
        assert found.kl == pytest.approx(0.5, rel=0.011)
        assert found.gain < trial.ideal_gain()

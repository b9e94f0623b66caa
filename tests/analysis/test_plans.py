"""Steering and circuits say what they take, and refuse what cannot fit."""

import pytest
import torch

from saelab import resources
from saelab.analysis.plans import circuit_plan, steering_plan
from saelab.config import UsageError


def test_a_plan_grows_with_the_prompt_and_the_nodes(random_lm):
    short, long = (circuit_plan(random_lm, torch.ones(n, dtype=torch.long), 8, 9) for n in (2, 8))
    more = circuit_plan(random_lm, torch.ones(8, dtype=torch.long), 8000, 90)
    assert short.memory < long.memory < more.memory == long.memory + 81
    texts = torch.ones(2, 4, dtype=torch.long)
    once, twice = (steering_plan(random_lm, texts, 10, length) for length in (5, 8))
    assert 0 < once.memory < twice.memory
    assert once.seconds is not None


def test_what_cannot_fit_is_refused_with_a_remedy(random_lm, monkeypatch):
    monkeypatch.setattr(resources, "free_on", lambda _: 10)
    with pytest.raises(UsageError, match="10 B is free; shorten the prompt, or lower --max-nodes"):
        circuit_plan(random_lm, torch.ones(4, dtype=torch.long), 8, 9).announce()

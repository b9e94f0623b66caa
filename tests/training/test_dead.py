"""Dead latents are counted in tokens, and firing means a value that is not zero."""

import pytest
import torch
from conftest import small_config

from saelab.training.dead import DeadLatents
from saelab.types import SparseCodes


def codes(values, indices) -> SparseCodes:
    return SparseCodes(torch.tensor(values), torch.tensor(indices), 4)


def test_silence_is_counted_in_tokens_and_firing_resets_it():
    dead = DeadLatents(4, dead_after=4, device=torch.device("cpu"))
    dead.update(codes([[1.0], [1.0]], [[0], [0]]))
    dead.update(codes([[-1.0], [1.0], [2.0]], [[1], [0], [0]]))
    assert dead.since_fired.tolist() == [0, 0, 5, 5]
    assert dead.dead.tolist() == [False, False, True, True]


def test_a_latent_selected_with_value_zero_has_not_fired():
    dead = DeadLatents(4, dead_after=2, device=torch.device("cpu"))
    dead.update(codes([[0.0], [0.0]], [[3], [3]]))
    assert dead.since_fired.tolist() == [2, 2, 2, 2]


def test_the_mask_is_none_while_every_latent_lives():
    dead = DeadLatents(4, dead_after=100, device=torch.device("cpu"))
    dead.update(codes([[1.0]], [[0]]))
    assert dead.mask() is None


@pytest.mark.parametrize(
    ("n_tokens", "given", "silence"),
    [(1_000_000, None, 100_000), (10**9, None, 10**7), (5, None, 1), (1_000_000, 77, 77)],
)
def test_by_default_a_tenth_of_the_run_is_silence_enough(small_store, n_tokens, given, silence):
    assert small_config(small_store, n_tokens=n_tokens, dead_after=given).silence == silence

"""Dead latents are counted in tokens, and firing means a value that is not zero."""

import pytest
import torch
from conftest import small_config

from saelab.activations.arrays import write_arrays
from saelab.sae.topk import TopKConfig
from saelab.testing.planted import orthonormal_atoms, rows, uneven_values
from saelab.training.config import TrainConfig
from saelab.training.dead import DeadLatents
from saelab.training.objectives import make_objective
from saelab.training.source import Source
from saelab.training.state import TrainingState
from saelab.training.steps import AutogradSteps
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


@pytest.mark.unchecked
def test_a_short_run_revives_latents_that_were_dead_at_its_start(tmp_path):
    """Half of 64 latents begin far below all others, for 64 features; 60,000 tokens."""
    atoms, silenced = orthonormal_atoms(64, 64), slice(32)
    x = rows(uneven_values(60_000, 64, mean_active=4.0), atoms)
    store = write_arrays(tmp_path / "store", {"x": x})
    fired, fvu = {}, {}
    for dead_after in (None, 10_000_000):
        config = TrainConfig(
            sae=TopKConfig(d_sae=64, k=4), activations=store, site="x",
            n_tokens=60_000, batch_size=512, lr=1e-2, dead_after=dead_after,
        )  # fmt: skip
        source = Source([config], torch.device("cpu"))
        state, stream = TrainingState.start(config, source, source.start_rows()), source.stream()
        assert isinstance(state.steps, AutogradSteps)
        with torch.no_grad():
            state.steps.sae.get_parameter("b_enc")[silenced] = -3
        while not state.finished:
            state.train_on(next(stream), make_objective(source))
        sae = state.finish(source.calibration_rows())
        codes, wanted = sae.encode(x[:8192]), x[:8192]
        fired[dead_after] = int((codes.firing_counts()[silenced] > 0).sum())
        missed = (wanted - sae.decode(codes)).pow(2).sum()
        fvu[dead_after] = float((missed / (wanted - wanted.mean(0)).pow(2).sum()).detach())
    assert fired[None] == 32 > fired[10_000_000]
    assert fvu[None] < 0.95 * fvu[10_000_000]

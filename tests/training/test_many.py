"""Several SAEs from one read of the store, and what is held back from it."""

import shutil
from typing import cast

import numpy as np
import pytest
import torch
from conftest import small_config
from training.test_loop import advance, by_autograd, started

from saelab.activations.arrays import write_arrays
from saelab.activations.batches import ShuffledBatches
from saelab.activations.store import ActivationStore
from saelab.config import UsageError
from saelab.training.loop import train, train_many
from saelab.training.source import Source
from saelab.types import ActivationBatch

CPU = torch.device("cpu")


def three(store, **changes):
    return {
        "small": small_config(store, **changes),
        "wide": small_config(store, sae={"variant": "topk", "d_sae": 48, "k": 4}, **changes),
        "longer": small_config(store, **{"n_tokens": 6000, "seed": 1, "data_seed": 0, **changes}),
    }


def weights(run):
    return run.load_sae().state_dict()


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture(scope="module")
def together(small_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("together")
    configs = {out / name: config for name, config in three(small_store).items()}
    return {run.name: run for run in train_many(configs, device="cpu")}


def test_saes_trained_together_equal_saes_trained_alone(together, small_store, tmp_path):
    for name, config in three(small_store).items():
        alone = train(config, out=tmp_path / name, device="cpu")
        assert same(weights(alone), weights(together[name])), name
        keys = ("step", "fvu", "l0", "loss")
        figures = [
            [line[k] for k in keys] for run in (alone, together[name]) for line in run.metrics()
        ]
        assert figures[: len(figures) // 2] == figures[len(figures) // 2 :]


def test_one_stream_serves_those_that_can_share_it(small_store, tmp_path, monkeypatch):
    opened = []

    class Counted(ShuffledBatches):
        def __init__(self, *args, **kwargs):
            opened.append(kwargs["seed"])
            super().__init__(*args, **kwargs)

    monkeypatch.setattr("saelab.training.source.ShuffledBatches", Counted)
    configs = three(small_store, n_tokens=300)
    configs["other order"] = small_config(small_store, n_tokens=300, seed=7)
    train_many({tmp_path / name: config for name, config in configs.items()}, device="cpu")
    assert opened == [0, 7]


def test_a_kill_between_two_checkpoints_of_one_step_loses_nothing(
    together, small_store, tmp_path, monkeypatch
):
    """The first SAE has saved step 20, the second only step 10: both end as if never stopped."""
    from saelab.training.state import TrainingState

    class KilledError(Exception):
        pass

    real, saves = TrainingState.save, []

    def save(self, directory, place):
        saves.append(self.step)
        if len(saves) == 5:
            raise KilledError
        real(self, directory, place)

    configs = {
        tmp_path / name: config for name, config in three(small_store, checkpoint_every=10).items()
    }
    monkeypatch.setattr(TrainingState, "save", save)
    with pytest.raises(KilledError):
        train_many(configs, device="cpu")
    assert saves == [10, 10, 10, 20, 20]
    monkeypatch.undo()
    for run in train_many(configs, device="cpu"):
        assert same(weights(run), weights(together[run.name])), run.name


def test_what_is_finished_is_not_trained_again(together, small_store, tmp_path):
    shutil.copytree(together["small"].path, tmp_path / "small")
    before = (tmp_path / "small" / "weights.safetensors").stat().st_mtime_ns
    configs = {tmp_path / name: config for name, config in three(small_store).items()}
    runs = train_many(configs, device="cpu")
    assert (tmp_path / "small" / "weights.safetensors").stat().st_mtime_ns == before
    assert same(weights(runs[1]), weights(together["wide"]))


def test_one_bad_configuration_stops_all_before_anything_is_written(small_store, tmp_path):
    configs = {
        tmp_path / "good": small_config(small_store),
        tmp_path / "bad": small_config(small_store, site="blocks.7.hook_resid_post", seed=1),
    }
    with pytest.raises(UsageError, match=r"blocks\.7"):
        train_many(configs, device="cpu")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def blocks(tmp_path):
    """A store of 15 blocks of random rows, no two alike."""
    return arrays_store(tmp_path / "blocks", n=3000, rows_per_unit=200)


def arrays_store(path, *, n, scale=1.0, **options):
    rows = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32) * scale
    return ActivationStore(write_arrays(path, {"mine": rows}, **options))


def on_arrays(store, **changes):
    return small_config(store, **({"site": "mine"} | changes))


def test_rows_for_calibration_are_never_trained_on(blocks):
    source = Source([on_arrays(blocks)], CPU)
    assert source.held_back
    kept = {tuple(row) for row in source.calibration_rows().tolist()}
    stream = source.stream()
    served = [
        tuple(row) for _ in range(28) for row in cast(ActivationBatch, next(stream)).x.tolist()
    ]
    assert len(kept) == 200
    assert len(set(served)) == len(served) == 2800
    assert not kept & set(served)


def test_a_store_of_one_block_is_calibrated_on_what_it_trains_on(tmp_path):
    store = arrays_store(tmp_path / "one", n=300)
    config = on_arrays(store, sae={"variant": "batch-topk", "d_sae": 32, "k": 4})
    run = train(config, out=tmp_path / "run", device="cpu")
    assert not Source([config], CPU).held_back
    assert run.load_sae().encode(store.site("mine").rows(0, 300)).mean_l0() == 4


def test_a_calibrated_threshold_gives_mean_l0_k_in_the_activations_own_units(blocks, tmp_path):
    config = on_arrays(blocks, sae={"variant": "batch-topk", "d_sae": 32, "k": 4})
    run = train(config, out=tmp_path / "run", device="cpu")
    rows = Source([config], CPU).calibration_rows()
    assert run.load_sae().encode(rows).mean_l0() == pytest.approx(4, abs=1 / len(rows))


def test_the_saved_sae_reads_raw_activations_and_its_error_is_the_reported_one(
    small_store, tmp_path
):
    config = small_config(small_store, n_tokens=8000, decay_fraction=1.0)
    run = train(config, out=tmp_path / "run", device="cpu")
    site = small_store.site(config.site)
    x = site.rows(0, small_store.n_rows)
    error = (x - run.load_sae().reconstruct(x)).pow(2).sum(-1).mean()
    assert float(error) / site.total_variance == pytest.approx(run.metrics()[-1]["fvu"], rel=0.15)


def test_normalised_training_does_not_depend_on_the_activations_units(tmp_path):
    fvu = []
    for scale in (1, 1024):
        store = arrays_store(tmp_path / f"store{scale}", n=2000, scale=scale)
        run = train(on_arrays(store), out=tmp_path / f"run{scale}", device="cpu")
        fvu.append([line["fvu"] for line in run.metrics()])
    assert fvu[0] == pytest.approx(fvu[1], rel=1e-4)


def test_bfloat16_products_keep_float32_weights_moments_and_losses(small_store):
    state, stream, objective = started(small_config(small_store, precision="bfloat16"))
    exact, other, _ = started(small_config(small_store))
    advance(state, stream, objective, 4)
    advance(exact, other, objective, 4)
    done, full = state.train_on(next(stream), objective), exact.train_on(next(other), objective)
    assert done.terms.total.dtype == done.terms.codes.values.dtype == torch.float32
    moments = [v for s in by_autograd(state).optimizer.state.values() for v in s.values()]
    assert {v.dtype for v in [*by_autograd(state).sae.parameters(), *moments]} == {torch.float32}
    assert not torch.equal(done.terms.total, full.terms.total)
    torch.testing.assert_close(done.terms.total, full.terms.total, rtol=0.05, atol=0)


def test_live_training_serves_the_stores_text_and_equals_its_resumed_self(
    small_store, random_lm, tmp_path, monkeypatch
):
    config = small_config(small_store, live=True, n_tokens=2000, checkpoint_every=7)
    whole = train(config, out=tmp_path / "whole", device="cpu", lm=random_lm)
    assert whole.metrics()[-1]["fvu"] < whole.metrics()[0]["fvu"]
    from saelab.training.state import TrainingState

    real = TrainingState.save

    def save_and_stop(self, directory, place):
        real(self, directory, place)
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingState, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, out=tmp_path / "stopped", device="cpu", lm=random_lm)
    monkeypatch.undo()
    resumed = train(config, out=tmp_path / "stopped", device="cpu", lm=random_lm)
    assert same(weights(resumed), weights(whole))


def test_live_training_end_to_end_is_refused(small_store, tmp_path):
    config = small_config(small_store, live=True, objective="e2e", batch_size=80)
    with pytest.raises(UsageError, match="--live trains with --objective local"):
        train(config, out=tmp_path / "run", device="cpu")

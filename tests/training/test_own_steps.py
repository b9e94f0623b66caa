"""A variant that brings its own step trains like any other, without what a gradient needs."""

import pytest
import torch
from conftest import small_config

from saelab.config import UsageError
from saelab.sae.variants import sized
from saelab.training.config import BY_GRADIENT, TrainConfig
from saelab.training.loop import train
from saelab.training.run import Run
from saelab.training.run_paths import AVERAGED

OTHER = {
    "objective": "masked", "precision": "bfloat16", "ties": "float32", "step": "autograd",
    "lr": 1e-3, "warmup_steps": 3, "warmup_shape": "cosine", "initial_lr_fraction": 0.1,
    "schedule": "cosine", "decay_fraction": 0.3, "final_lr_fraction": 0.1, "clip_norm": None,
    "adam_beta1": 0.5, "adam_beta2": 0.5, "adam_eps": 1e-3, "weight_decay": 0.1,
    "moments": "bfloat16",
}  # fmt: skip


def config(store, **changes):
    sae = sized("gsc", 32, 4).model_dump() | {"candidates": 4, "max_active": 2}
    return small_config(store, sae=sae, n_tokens=2000, **changes)


@pytest.mark.parametrize("option", BY_GRADIENT)
def test_options_of_a_gradient_are_refused_by_name(small_store, option):
    assert OTHER.keys() == set(BY_GRADIENT)
    given = config(small_store).model_copy(update={option: OTHER[option]})
    with pytest.raises(UsageError, match=f"{option}=.* a gsc SAE is fitted by .*; leave it out"):
        given.check()
    given.of(given.sae).check()


def test_a_transcoder_is_refused(small_store):
    with pytest.raises(UsageError, match="it models the rows that it reads"):
        config(small_store, target_site="blocks.1.attn.hook_z").check()


def test_other_variants_keep_their_options(small_store):
    plain = small_config(small_store)
    assert plain.of(plain.sae) == plain
    assert isinstance(plain.of(config(small_store).sae), TrainConfig)


def test_the_log_has_the_models_figures_and_no_rate(small_store, tmp_path):
    run = train(config(small_store, ema=0.9), out=tmp_path / "run")
    lines = run.metrics()
    assert {"free_energy", "at_limit", "pi", "sigma", "temperature"} < lines[0].keys()
    assert not {"lr", "gradient_norm"} & lines[0].keys()
    assert lines[-1]["free_energy"] > lines[0]["free_energy"]
    assert lines[-1]["loss"] == pytest.approx(-lines[-1]["free_energy"] / 16)
    assert run.provenance()["step"] == "own"
    averaged = Run(run.path / AVERAGED).load_sae()
    torch.testing.assert_close(averaged.W_dec.norm(dim=1), torch.ones(32))


def test_a_longer_run_says_nothing_of_a_rate(small_store, tmp_path, capsys):
    train(config(small_store), out=tmp_path / "run")
    longer = config(small_store).model_copy(update={"n_tokens": 3000})
    assert train(longer, out=tmp_path / "run").metrics()[-1]["tokens"] == 3000
    assert "rate" not in capsys.readouterr().err

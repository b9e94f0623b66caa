"""Trainings that start from a trained SAE: what they take of it, and what they refuse."""

import json
import shutil

import pytest
import torch
from conftest import small_config
from training.test_kept import equal_weights
from training.test_loop import NAMES, advance, by_autograd, started
from training.test_transcoders import READS, WRITES, config_of

from saelab.config import UsageError
from saelab.sae.context import LossContext
from saelab.sae.jumprelu import JumpReLU
from saelab.sae.storage import load_sae, save_sae
from saelab.sae.unit_norm import AbstractUnitNormSAE
from saelab.sae.variants import sized, variants
from saelab.training.adopt import adopt
from saelab.training.loop import train, train_many
from saelab.training.objectives import make_objective
from saelab.training.source import Source
from saelab.training.state import TrainingState
from saelab.training.sweep import read_sweep

pytestmark = pytest.mark.usefixtures("on_cpu")

SITE = "blocks.0.hook_resid_post"
BY_GRADIENT = [
    name
    for name, config in ((name, sized(name, 48, 4)) for name in NAMES)
    if config.fitted_by is None and config.decoder_problem is None
]
"""The others have no autograd step, or an error without a unit."""


def sae(variant, **changes):
    k = {"k": 4} if "k" in variants()[variant].model_fields else {}
    return {"variant": variant, "d_sae": 48, **k, **changes}


def from_run(config, run):
    """The state before the first step of a training that starts from `run`, and its source."""
    source = Source([config], torch.device("cpu"))
    return TrainingState.start(config, source, source.start_rows(), run.load_sae()), source


@torch.no_grad()
def loss(state, batch):
    """The error of a step on this batch; nothing is changed."""
    model = by_autograd(state).sae
    scaled = type(batch)(
        batch.x * state.scale,
        target=None if batch.target is None else batch.target * state.target_scale,
        grad=batch.grad,
    )
    variance = state.total_variance * state.target_scale**2
    return float(model.training_pass(scaled, LossContext(variance, step=7, n_steps=40)).error)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("variant", BY_GRADIENT)
def test_the_first_loss_is_the_last_of_the_run_that_it_starts_from(
    small_store, tmp_path, variant, normalise
):
    config = small_config(small_store, sae=sae(variant), n_tokens=2000)
    run = train(config, out=tmp_path / "run")
    last, stream, objective = started(config)
    advance(last, stream, objective, 20)
    batch = next(stream)
    other = config.model_copy(update={"normalise": normalise, "seed": 5})
    state, _ = from_run(other, run)
    # Errors are in units of what is reconstructed, which is scaled or not.
    units = (last.target_scale / state.target_scale) ** 2
    assert loss(state, batch) * units == pytest.approx(loss(last, batch), rel=1e-4)
    assert not any(name.startswith("optimizer") for name in state.steps.tensors())


@pytest.mark.parametrize("target", ["topk", "matryoshka", "gradient-topk"])
@pytest.mark.parametrize("origin", ["jumprelu"])
def test_another_variant_has_the_pre_activations_of_the_one_that_it_starts_from(
    small_store, tmp_path, origin, target
):
    run = train(small_config(small_store, sae=sae(origin), n_tokens=1000), out=tmp_path / "run")
    state, source = from_run(small_config(small_store, sae=sae(target)), run)
    x = source.site.rows(0, 200)
    trained, fresh = run.load_sae(), by_autograd(state).sae
    assert isinstance(trained, JumpReLU)
    assert isinstance(fresh, AbstractUnitNormSAE)
    expected = trained.pre_activations(x) * state.scale
    torch.testing.assert_close(fresh.pre_activations(x * state.scale), expected, atol=1e-4, rtol=0)
    assert torch.equal(fresh.W_dec, trained.W_dec)


def test_thresholds_are_taken_over_where_there_are_any(small_store, tmp_path):
    run = train(small_config(small_store, sae=sae("batch-topk")), out=tmp_path / "run")
    trained = run.load_sae()
    state, source = from_run(small_config(small_store, sae=sae("jumprelu")), run)
    x = source.site.rows(0, 200)
    expected = trained.reconstruct(x)
    found = by_autograd(state).sae.reconstruct(x * state.scale) / state.scale
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_jumprelu_starts_from_topk_with_the_l0_that_is_asked(small_store, tmp_path):
    run = train(small_config(small_store, sae=sae("topk"), n_tokens=1000), out=tmp_path / "run")
    state, source = from_run(small_config(small_store, sae=sae("jumprelu", k=6)), run)
    codes = by_autograd(state).sae.encode(source.start_rows() * state.scale)
    assert float(codes.active.sum()) / len(codes) == pytest.approx(6, rel=0.05)


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_starts_from_a_transcoder(mlp_store, tmp_path, skip):
    config = config_of(mlp_store, n_tokens=2000)
    run = train(config, out=tmp_path / "run")
    last, stream, objective = started(config)
    advance(last, stream, objective, 20)
    batch = next(stream)
    state, _ = from_run(config.model_copy(update={"skip": skip}), run)
    assert loss(state, batch) == pytest.approx(loss(last, batch), rel=1e-4)


def test_atoms_that_are_not_unit_give_their_norms_to_the_codes(small_store, tmp_path):
    """Such SAEs come from other tools; the first step would change what they reconstruct."""
    run = train(small_config(small_store, sae=sae("jumprelu"), n_tokens=1000), out=tmp_path / "a")
    other = load_sae(run.weights)
    factors = torch.linspace(0.5, 2, other.d_sae)
    with torch.no_grad():
        other.W_dec.mul_(factors[:, None])
        for name in ("W_enc", "b_enc", "threshold"):
            other.get_parameter(name).div_(factors)
    made = adopt(
        other, activations=small_store.path, site=SITE, out=tmp_path / "other", origin="elsewhere"
    )
    state, source = from_run(small_config(small_store, sae=sae("jumprelu")), made)
    x = source.site.rows(0, 200)
    found = by_autograd(state).sae
    torch.testing.assert_close(found.W_dec.norm(dim=1), torch.ones(other.d_sae))
    torch.testing.assert_close(
        found.reconstruct(x * state.scale) / state.scale, run.load_sae().reconstruct(x)
    )


def test_a_training_on_the_same_rows_goes_on_where_the_run_was(small_store, tmp_path, capsys):
    run = train(small_config(small_store), out=tmp_path / "run")
    config = small_config(small_store, init_from=run.path, warmup_steps=0, lr=1e-5, log_every=1)
    tuned = train(config, out=tmp_path / "tuned")
    last = run.metrics()[-1]["fvu"]
    assert next(line["fvu"] for line in tuned.metrics()) == pytest.approx(last, rel=0.1)
    told = capsys.readouterr().err
    assert f"Starts from {run.path}, a topk SAE of {SITE} of " in told
    assert "here it is" not in told
    kept = tuned.provenance()["init_from"]
    assert kept["site"] == SITE
    assert kept["weights_sha256"]
    before = tuned.load_sae().state_dict()
    again = train(config, out=tmp_path / "again").load_sae().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in before.items())


def test_another_site_and_limit_are_told(sink_run, sink_store, tmp_path, capsys):
    config = small_config(
        sink_store,
        init_from=sink_run.path,
        site="blocks.1.hook_resid_post",
        outliers="keep",
        n_tokens=500,
    )
    train(config, out=tmp_path / "run")
    told = capsys.readouterr().err
    assert f"a topk SAE of {SITE} of " in told
    assert "; here it is blocks.1.hook_resid_post of " in told
    assert "; max_norm was " in told
    assert " there and is None here" in told


def test_a_sweep_starts_from_a_run(small_store, tmp_path):
    run = train(small_config(small_store, n_tokens=500), out=tmp_path / "run")
    base = json.loads(small_config(small_store, n_tokens=500).model_dump_json())
    base["init_from"] = str(run.path)
    (tmp_path / "sweep.json").write_text(json.dumps({"base": base, "grid": {"sae.k": [3, 5]}}))
    configs = read_sweep(tmp_path / "sweep.json")
    runs = train_many({tmp_path / name: config for name, config in configs.items()})
    assert [each.provenance()["init_from"]["path"] for each in runs] == [str(run.path)] * 2


@pytest.mark.parametrize("variant", ["jumprelu", "batch-topk"])
def test_an_interrupted_training_needs_no_origin_any_more(small_store, tmp_path, variant):
    run = train(small_config(small_store, sae=sae("topk"), n_tokens=500), out=tmp_path / "run")
    config = small_config(small_store, sae=sae(variant), init_from=run.path, n_tokens=1000)
    whole = train(config, out=tmp_path / "whole")
    out = train(config, out=tmp_path / "out").path
    (out / "weights.safetensors").unlink()
    shutil.rmtree(out / "checkpoints")
    state, source = from_run(config, run)
    stream = source.stream()
    advance(state, stream, make_objective(source), 4)
    state.save(out / "checkpoints", stream.state_dict())
    run.weights.unlink()
    assert equal_weights(train(config, out=out), whole)


def test_other_weights_than_it_was_begun_with_are_refused(small_store, tmp_path):
    run = train(small_config(small_store, n_tokens=500), out=tmp_path / "run")
    config = small_config(small_store, init_from=run.path, n_tokens=1000, keep_state=False)
    out = train(config, out=tmp_path / "out").path
    (out / "weights.safetensors").unlink()
    changed = load_sae(run.weights)
    with torch.no_grad():
        changed.b_dec.add_(1)
    save_sae(changed, run.weights)
    with pytest.raises(UsageError, match=r"run has other weights than .*out was begun with"):
        train(config, out=out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sae": sae("topk", d_sae=64)}, "has 48 latents, and 64 are asked; take --d-sae 48"),
        ({"site": WRITES}, "reads rows of 16 numbers, and this site has 64"),
        ({"site": READS, "target_site": WRITES}, "reconstructs what it reads; leave out --target"),
        ({"sae": sae("k-sparse")}, "A k-sparse SAE cannot start from a topk one.*W_enc"),
        ({"sae": sae("matching-pursuit")}, "only one of the two has W_enc and b_enc"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_any_work(mlp_store, tmp_path, changes, message):
    config = small_config(mlp_store, site=READS, sae=sae("topk"), n_tokens=500)
    run = train(config, out=tmp_path / "run")
    other = small_config(
        mlp_store, **({"site": READS, "sae": sae("topk")} | changes), init_from=run.path
    )
    with pytest.raises(UsageError, match=message):
        train(other, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("skip", [False, True])
def test_an_sae_cannot_start_from_a_transcoder(mlp_store, mlp_run, tmp_path, skip):
    sites = {"site": READS, "target_site": WRITES} if skip else {"site": READS}
    config = small_config(mlp_store, **sites, init_from=mlp_run.path)
    message = (
        "has a skip connection; give --skip" if skip else "is a transcoder; give --target-site"
    )
    with pytest.raises(UsageError, match=message):
        train(config, out=tmp_path / "other")


def test_what_is_no_finished_run_is_refused(small_store, tmp_path):
    (tmp_path / "empty").mkdir()
    config = small_config(small_store, init_from=tmp_path / "empty")
    with pytest.raises(UsageError, match=r"--init-from .*empty is not a run; `saelab import`"):
        train(config, out=tmp_path / "out")
    (tmp_path / "empty" / "config.json").write_text(config.to_json())
    with pytest.raises(UsageError, match="has no weights yet"):
        train(config, out=tmp_path / "out")

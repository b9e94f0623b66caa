"""Training transcoders: two sites of one store, two scales, and what a run says of them."""

import pytest
import torch
from conftest import small_config
from training.test_loop import advance, by_autograd, started

from saelab.config import UsageError
from saelab.sae.dictionary import geometric_median
from saelab.sae.storage import load_sae
from saelab.sae.variants import sized
from saelab.training.adopt import adopt
from saelab.training.checkpoint import optimizer_tensors
from saelab.training.config import TrainConfig
from saelab.training.loop import train, train_many
from saelab.training.source import Source
from saelab.types import ActivationBatch

READS, WRITES = "blocks.1.ln2.hook_out", "blocks.1.mlp.hook_post"
VARIANTS = [
    "topk",
    "batch-topk",
    "abs-topk",
    "matryoshka",
    "hierarchical-topk",
    "jumprelu",
    "gated",
]


def config_of(store, variant="topk", **changes) -> TrainConfig:
    sae = sized(variant, 48, 4)
    values = {"sae": sae, "site": READS, "target_site": WRITES, "dead_after": 300}
    return small_config(store, **values | changes)


def test_it_starts_at_the_inputs_median_and_the_targets_mean_in_their_own_scales(mlp_store):
    state, _, _ = started(config_of(mlp_store))
    rows, targets = (mlp_store.site(name).rows(0, mlp_store.n_rows) for name in (READS, WRITES))
    sae = by_autograd(state).sae
    assert (sae.d_in, sae.d_out) == (rows.shape[1], targets.shape[1]) == (16, 64)
    unit = [len(r.T) / (r - r.mean(0)).pow(2).sum(1).mean() for r in (rows, targets)]
    torch.testing.assert_close(state.scale**2, float(unit[0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(state.target_scale**2, float(unit[1]), rtol=1e-4, atol=0)
    torch.testing.assert_close(sae.b_in, geometric_median(rows * state.scale))
    torch.testing.assert_close(sae.b_dec.detach(), (targets * state.target_scale).mean(0))


@pytest.mark.parametrize(
    ("variant", "skip"),
    [("topk", False), *((variant, True) for variant in [*VARIANTS, "gradient-topk", "gated"])],
)
def test_stopping_and_resuming_equals_not_stopping_bit_for_bit(mlp_store, tmp_path, variant, skip):
    config = config_of(mlp_store, variant, skip=skip, seed=3)
    whole, stream, objective = started(config)
    advance(whole, stream, objective, 20)
    first, stream, objective = started(config)
    advance(first, stream, objective, 9)
    first.save(tmp_path, stream.state_dict())
    second, stream, objective = started(config)
    place = second.restore(tmp_path)
    assert place is not None
    stream.load_state_dict(place)
    advance(second, stream, objective, 11)
    one, other = by_autograd(whole), by_autograd(second)
    assert ("W_skip" in one.sae.state_dict()) == skip
    for name, value in one.sae.state_dict().items():
        assert torch.equal(value, other.sae.state_dict()[name]), name
    for name, value in optimizer_tensors(one.optimizer).items():
        assert torch.equal(value, optimizer_tensors(other.optimizer)[name]), name
    assert torch.equal(one.dead.since_fired, other.dead.since_fired)


def test_the_logged_fvu_is_that_of_the_target(mlp_store, tmp_path):
    config = config_of(mlp_store, lr=1e-30, warmup_steps=0, log_every=40, skip=True)
    run = train(config, out=tmp_path / "run")
    state, stream, _ = started(config)
    sae = by_autograd(state).sae
    mean = torch.from_numpy(mlp_store.site(WRITES).mean).float() * state.target_scale
    error = variance = 0.0
    for _ in range(40):
        batch = next(stream)
        assert isinstance(batch, ActivationBatch)
        target = batch.wanted * state.target_scale
        with torch.no_grad():
            error += float((target - sae.reconstruct(batch.x * state.scale)).pow(2).sum())
        variance += float((target - mean).pow(2).sum())
    assert run.metrics()[-1]["fvu"] == pytest.approx(error / variance, rel=1e-4)


def test_the_saved_transcoder_reads_and_writes_raw_activations(mlp_run, mlp_store):
    """The same function as in training, at the activations' own scales."""
    state, _, _ = started(mlp_run.config)
    x, y = (mlp_store.site(name).rows(0, 300) for name in (READS, WRITES))
    sae, variance = mlp_run.load_sae(), (y - y.mean(0)).pow(2).sum()
    error = (y - sae.reconstruct(x)).pow(2).sum()
    assert float(error / variance) < 0.6
    sae.rescale(1 / state.scale, 1 / state.target_scale)
    scaled = (y * state.target_scale - sae.reconstruct(x * state.scale)).pow(2).sum()
    torch.testing.assert_close(scaled, error * state.target_scale**2, rtol=1e-3, atol=0)


def test_a_run_says_what_it_reads_and_writes(mlp_run, mlp_store):
    assert mlp_run.options["target_site"] == WRITES
    assert mlp_run.options["skip"] is True
    variance = mlp_store.site(WRITES).total_variance
    assert mlp_run.provenance()["total_variance"] == variance
    from safetensors import safe_open

    with safe_open(mlp_run.weights, framework="pt") as file:
        header = file.metadata()
    assert (header["site"], header["target_site"]) == (READS, WRITES)
    assert header["total_variance"] == repr(variance)
    assert load_sae(mlp_run.weights).is_transcoder


def test_a_skip_connection_helps_where_much_is_linear(mlp_store, tmp_path):
    configs = {tmp_path / str(s): config_of(mlp_store, skip=s) for s in (False, True)}
    plain, skipping = (run.metrics()[-1]["fvu"] for run in train_many(configs))
    assert skipping < 0.9 * plain


def test_transcoders_and_saes_of_one_sweep_do_not_share_batches(mlp_store, tmp_path):
    configs = {
        "sae": config_of(mlp_store, target_site=None, n_tokens=500),
        "transcoder": config_of(mlp_store, n_tokens=500),
        "back": config_of(mlp_store, site=WRITES, target_site=READS, n_tokens=500),
    }
    together = train_many({tmp_path / "many" / name: c for name, c in configs.items()})
    for run, (name, config) in zip(together, configs.items(), strict=True):
        alone = train(config, out=tmp_path / name).load_sae().state_dict()
        for key, value in run.load_sae().state_dict().items():
            assert torch.equal(value, alone[key]), (name, key)


def test_a_gradient_transcoder_reads_the_targets_gradients(mlp_store):
    source = Source([config_of(mlp_store, "gradient-topk")], torch.device("cpu"))
    batch = next(source.stream())
    assert isinstance(batch, ActivationBatch)
    grad = batch.grad
    assert grad is not None
    assert grad.shape == batch.wanted.shape == (100, 64)
    site = mlp_store.site(f"{WRITES}.gradient")
    kept = {tuple(row) for row in site.rows(0, mlp_store.n_rows).tolist()}
    assert all(tuple(row) in kept for row in grad.tolist())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_site": "blocks.0.hook_mlp_out"}, r"holds no blocks.0.hook_mlp_out to reconstru"),
        ({"target_site": READS}, "is what the SAE reads; leave it out"),
        ({"target_site": None, "skip": True}, "--skip needs --target-site"),
        ({"objective": "e2e"}, "--objective e2e is for an SAE that reconstructs what it reads"),
        ({"buffer_rows": 100}, "buffer_rows=100 needs --live"),
        ({"sae": sized("gated", 48, 4), "step": "fused"}, "--step fused cannot train this"),
        ({"sae": {"variant": "k-sparse", "d_sae": 8, "k": 2}}, "A k-sparse SAE cannot have anoth"),
        ({"sae": {"variant": "matching-pursuit", "d_sae": 8, "k": 2}}, "A matching-pursuit SAE ca"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    mlp_store, tmp_path, changes, message
):
    with pytest.raises(UsageError, match=message):
        train(config_of(mlp_store, **changes), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "gated"])
def test_the_fused_step_is_taken_for_a_transcoder_on_cuda(mlp_store, monkeypatch, variant):
    from saelab.training import steps

    state, _, _ = started(config_of(mlp_store, variant, skip=True))
    monkeypatch.setattr(steps, "has_triton", lambda: True)
    assert steps.fused_problem(state.config, by_autograd(state).sae, torch.device("cuda")) is None


def test_a_transcoder_is_adopted_with_both_of_its_sites(mlp_run, mlp_store, tmp_path):
    sae = mlp_run.load_sae()
    given = {"activations": mlp_store.path, "site": READS, "origin": "there"}
    run = adopt(sae, out=tmp_path / "a", target_site=mlp_run.config.target_site, **given)
    assert (run.config.site, run.config.target_site) == (READS, mlp_run.config.target_site)
    assert run.config.skip == (sae.W_skip is not None)
    assert torch.equal(run.load_sae().W_dec, sae.W_dec)
    with pytest.raises(UsageError, match="is a transcoder; name the target site"):
        adopt(sae, out=tmp_path / "b", **given)
    with pytest.raises(UsageError, match="is what the SAE reads"):
        adopt(sae, out=tmp_path / "b", target_site=READS, **given)
    assert not (tmp_path / "b").exists()

"""The average of weights (EMA) is that of their history, and the SAE of it is a run."""

import pytest
import torch
from conftest import small_config
from kernels.triton_device import DEVICE

from saelab.evaluation.evaluate import evaluate
from saelab.sae.context import LossContext
from saelab.sae.variants import BUILT_IN, SAE_CONFIG, sized
from saelab.training import fused_graphs
from saelab.training.average import WeightAverage
from saelab.training.find import find_runs
from saelab.training.fused_steps import FusedSteps
from saelab.training.loop import train
from saelab.training.objectives import Local, make_objective
from saelab.training.run import Run
from saelab.training.run_paths import AVERAGED, kept_at
from saelab.training.source import Source
from saelab.training.state import TrainingState
from saelab.training.steps import AutogradSteps
from saelab.types import ActivationBatch

NAMES = [
    name
    for name, sae in ((name, sized(name, 32, 4)) for name in BUILT_IN)
    if sae.fitted_by is None and sae.decoder_problem is None
]
D_IN, D_SAE, BATCH, STEPS, V, DECAY = 6, 5, 4, 4, 6.0, 0.7


def mean_of_history(history, decay=DECAY):
    """By the definition, in float64."""
    t = len(history)
    shares = [(1 - decay) * decay ** (t - 1 - s) / (1 - decay**t) for s in range(t)]
    assert sum(shares) == pytest.approx(1)
    return {
        name: torch.stack([s * w[name].double() for s, w in zip(shares, history, strict=True)]).sum(
            0
        )
        for name in history[0]
    }


@pytest.mark.parametrize("way", [AutogradSteps, FusedSteps])
@pytest.mark.parametrize("variant", ["batch-topk", "jumprelu"])
def test_it_is_the_mean_of_the_weights_there_were(small_store, monkeypatch, variant, way):
    monkeypatch.setattr(fused_graphs, "LEAST_ROOM", 32)
    sae = SAE_CONFIG.validate_python({"variant": variant, "d_sae": D_SAE, "k": 2})
    config = small_config(small_store, sae=sae, ema=DECAY, batch_size=BATCH)
    built = config.sae.build(D_IN, torch.Generator().manual_seed(0)).to(DEVICE)
    steps = way(config, built, torch.device(DEVICE), *([V] if way is FusedSteps else []))
    generator, history = torch.Generator().manual_seed(1), []
    for number in range(STEPS):
        batch = ActivationBatch(torch.randn(BATCH, D_IN, generator=generator).to(DEVICE))
        context = LossContext(V, step=number, n_steps=STEPS)
        steps.optimizer_step(batch, Local(), context, lr=0.1, scale=1.0)
        parameters = steps.trained().named_parameters()
        history.append({name: value.detach().clone() for name, value in parameters})
    expected = mean_of_history(history)
    norms = expected["W_dec"].norm(dim=1)
    assert float(norms.min()) < 0.999  # Of unit vectors that differ.
    averaged = steps.averaged()
    expected["W_dec"] /= norms[:, None]
    for name in ("W_enc", "b_enc", "threshold"):
        if name in expected:
            expected[name] *= norms
    for name, value in expected.items():
        torch.testing.assert_close(averaged.get_parameter(name), value.float(), msg=name)
    for name, value in history[-1].items():
        assert torch.equal(steps.trained().get_parameter(name), value), name


def test_after_one_step_it_is_the_weights():
    weights = {"W": torch.randn(3, 2, generator=torch.Generator().manual_seed(0))}
    average = WeightAverage(0.999, weights)
    average.update(weights, 1)
    assert torch.equal(average.means["W"], weights["W"])


@pytest.mark.parametrize("variant", NAMES)
def test_norms_go_into_codes_and_what_each_latent_adds_stays(variant):
    """All latents on, so that the choice of codes is none."""
    values = {"variant": variant, "d_sae": D_SAE}
    options = type(SAE_CONFIG.validate_python(values)).model_fields
    values |= {"k": None if variant == "jumprelu" else D_SAE} if "k" in options else {}
    values |= {"fractions": (0.4, 0.6)} if variant == "matryoshka" else {}
    sae = SAE_CONFIG.validate_python(values).build(D_IN, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        if variant not in ("k-sparse", "matching-pursuit"):
            sae.W_dec.mul_(torch.rand(D_SAE, 1, generator=generator) + 0.5)
    x = torch.randn(20, D_IN, generator=generator)
    if variant == "batch-topk" or "threshold" in dict(sae.named_buffers()):
        sae.get_buffer("threshold").fill_(0)
    before = sae.reconstruct(x)
    sae.restore_norms()
    norms = sae.W_dec.norm(dim=1)
    if sae.unit_atoms:
        torch.testing.assert_close(norms, torch.ones(D_SAE))
    torch.testing.assert_close(sae.reconstruct(x), before)


@pytest.fixture(scope="module")
def averaged_run(small_store, tmp_path_factory):
    sae = {"variant": "batch-topk", "d_sae": 32, "k": 4}
    config = small_config(small_store, sae=sae, ema=0.9, keep_at=(2000,))
    return train(config, out=tmp_path_factory.mktemp("average") / "run", device="cpu")


def test_averaging_changes_nothing_of_the_training(averaged_run, small_store, tmp_path):
    options = averaged_run.config.model_copy(update={"ema": None, "keep_at": ()})
    plain = train(options, out=tmp_path / "plain", device="cpu")
    for name, value in plain.load_sae().state_dict().items():
        assert torch.equal(value, averaged_run.load_sae().state_dict()[name]), name
    assert not (plain.path / AVERAGED).exists()


def test_the_average_is_a_run_beside_and_is_evaluated_like_one(averaged_run, random_lm):
    run = Run(averaged_run.path / AVERAGED)
    assert run.name == "run@ema"
    assert {r.name for r in find_runs(averaged_run.path).runs} == {
        "run", "run@ema", "run@2000", "run@2000@ema",
    }  # fmt: skip
    assert run.provenance()["part_of"]["averaged"] == 0.9
    result = evaluate(run, random_lm, n_tokens=20).reconstruction
    assert result["fvu"] < 1
    own, average = averaged_run.load_sae(), run.load_sae()
    assert not torch.equal(own.W_dec, average.W_dec)
    norms = average.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_thresholds_are_calibrated_for_the_average(averaged_run, small_store):
    source = Source([averaged_run.config], torch.device("cpu"))
    rows = source.calibration_rows()
    for path in (averaged_run.path, kept_at(averaged_run.path, 2000)):
        sae = Run(path / AVERAGED).load_sae()
        assert sae.encode(rows).mean_l0() == pytest.approx(4, rel=0.02)


def test_it_continues_from_a_checkpoint_to_the_same_bits(averaged_run, small_store, tmp_path):
    config = averaged_run.config
    source = Source([config], torch.device("cpu"))
    first, second = (TrainingState.start(config, source, source.start_rows()) for _ in range(2))
    stream, objective = source.stream(), make_objective(source)
    for _ in range(17):
        first.train_on(next(stream), objective)
    first.save(tmp_path, stream.state_dict())
    assert second.restore(tmp_path) is not None
    while not second.finished:
        second.train_on(next(stream), objective)
    found = second.averaged(source.calibration_rows())
    assert found is not None
    expected = Run(averaged_run.path / AVERAGED).load_sae().state_dict()
    for name, value in found.state_dict().items():
        assert torch.equal(value, expected[name]), name

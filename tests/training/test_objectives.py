"""What arXiv 2405.12241 says of training end to end."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import small_config
from training.test_loop import by_autograd, started
from typing_extensions import override

from saelab.activations.arrays import write_arrays
from saelab.activations.contexts import ContextBatches
from saelab.activations.store import ActivationStore
from saelab.activations.writer import StoreWriter
from saelab.config import UsageError
from saelab.lm.predictions import Predictions
from saelab.sae.context import LossContext
from saelab.sae.topk import TopK, TopKConfig
from saelab.training.loop import train
from saelab.training.objectives import EndToEnd, kl_plain_spliced, make_objective
from saelab.training.source import Source
from saelab.types import SparseCodes, TrainingPass

SITE = "blocks.0.hook_resid_post"
CONTEXT = LossContext(1.0)


def e2e(store, **changes):
    return small_config(store, **({"objective": "e2e", "batch_size": 40} | changes))


class Identity(TopK):
    """Reconstructs exactly; one weighted further term."""

    @override
    def training_pass(self, batch, context):
        n = len(batch.x)
        codes = SparseCodes(torch.ones(n, 1), torch.zeros(n, 1, dtype=torch.int64), 2)
        return TrainingPass(
            codes, batch.x, torch.tensor(7.0), {"sparsity": (0.5, torch.tensor(3.0))}
        )


@pytest.fixture
def batch(small_store):
    return next(Source([e2e(small_store)], torch.device("cpu")).stream())


def objective(random_lm, later=(), **coefficients):
    given: dict[str, Any] = {"kl_coefficient": 1.0, "downstream_coefficient": 1.0} | coefficients
    return EndToEnd(random_lm, SITE, later=later, **given)


def test_a_perfect_reconstruction_leaves_only_the_further_terms(random_lm, batch):
    goal = objective(random_lm, later=("blocks.1.hook_resid_post",))
    _, terms = goal.loss(Identity(TopKConfig(d_sae=2, k=1), 16), batch, CONTEXT, 4.0)
    torch.testing.assert_close(terms.total, torch.tensor(1.5), atol=1e-5, rtol=0)
    assert float(terms.parts["kl"]) == pytest.approx(0, abs=1e-6)
    assert float(terms.parts["downstream"]) == pytest.approx(0, abs=1e-6)


def test_kl_is_that_of_the_plain_models_distribution_and_ignores_shifts():
    generator = torch.Generator().manual_seed(0)
    plain, spliced = 3 * torch.randn(2, 5, 7, generator=generator)
    p, q = plain.softmax(-1), spliced.softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean()
    found = kl_plain_spliced(Predictions(plain, None, 7), Predictions(spliced, None, 7))
    torch.testing.assert_close(found, expected)
    moved = Predictions(plain + 3, None, 7), Predictions(spliced - torch.rand(5, 1), None, 7)
    torch.testing.assert_close(kl_plain_spliced(*moved), expected)
    reverse = (q * (q / p).log()).sum(-1).mean()
    assert abs(float(expected - reverse)) > 0.05


def test_gradients_reach_the_sae_and_nothing_of_the_model(random_lm, batch, small_store):
    state, _, _ = started(e2e(small_store))
    _, terms = objective(random_lm).loss(by_autograd(state).sae, batch, CONTEXT, state.scale)
    terms.total.backward()
    assert all(bool(p.grad.any()) for p in by_autograd(state).sae.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in random_lm._bridge.parameters())


def test_the_gradient_is_the_losss_derivative(random_lm, batch, small_store):
    """A central difference along b_dec, through the whole model."""
    relu = {"variant": "topk", "d_sae": 32, "k": 32}
    state, _, _ = started(e2e(small_store, sae=relu))
    sae, goal = by_autograd(state).sae, objective(random_lm, later=("blocks.1.hook_resid_post",))
    direction = torch.randn(16, generator=torch.Generator().manual_seed(0))

    def total(at):
        with torch.no_grad():
            sae.b_dec += at * direction
        value = goal.loss(sae, batch, CONTEXT, state.scale)[1].total
        with torch.no_grad():
            sae.b_dec -= at * direction
        return value

    goal.loss(sae, batch, CONTEXT, state.scale)[1].total.backward()
    step = 1e-3
    numeric = (total(step) - total(-step)).detach() / (2 * step)
    torch.testing.assert_close(sae.b_dec.grad @ direction, numeric, rtol=0.03, atol=1e-4)


def test_without_downstream_weight_e2e_ds_is_e2e(random_lm, batch, small_store):
    state, _, _ = started(e2e(small_store))
    plain = objective(random_lm).loss(by_autograd(state).sae, batch, CONTEXT, state.scale)[1].total
    ds = objective(random_lm, ("blocks.1.hook_resid_post",), downstream_coefficient=0.0)
    assert torch.equal(ds.loss(by_autograd(state).sae, batch, CONTEXT, state.scale)[1].total, plain)


def test_the_reconstruction_error_itself_is_no_part_of_the_loss(random_lm, batch, small_store):
    state, _, _ = started(e2e(small_store))
    goal = objective(random_lm, kl_coefficient=0.0)
    assert (
        float(goal.loss(by_autograd(state).sae, batch, CONTEXT, state.scale)[1].total.detach())
        == 0.0
    )


def test_training_end_to_end_lowers_the_kl(small_store, tmp_path):
    run = train(e2e(small_store, n_tokens=6000), out=tmp_path / "run", device="cpu")
    kl = [line["kl"] for line in run.metrics()]
    assert kl[-1] < 0.7 * kl[0]
    assert {"fvu", "l0"} <= run.metrics()[-1].keys()


def test_the_last_unit_is_held_back_from_live_training(small_store, tmp_path):
    manifest = small_store.manifest.model_copy(update={"contexts_per_unit": 20})
    columns = small_store.tokens(0)
    with StoreWriter.create(tmp_path / "units", manifest) as writer:
        for unit in writer.missing_units():
            inside = np.isin(columns.context, manifest.unit_contexts(unit))
            part = columns.permuted(np.flatnonzero(inside))
            rows = {
                s.name: small_store.site(s.name).take(np.flatnonzero(inside))
                for s in manifest.sites
            }
            contexts = columns.contexts[manifest.unit_contexts(unit)]
            writer.write_unit(
                unit, rows, replace(part, contexts=contexts, excluded={"special": len(contexts)})
            )
    store = ActivationStore(tmp_path / "units")
    source = Source([e2e(store, batch_size=8)], torch.device("cpu"))
    last = store.tokens(store.units[-1])
    assert source.held_back
    assert len(source.calibration_rows()) == len(last.token)
    n = manifest.n_contexts - len(last.contexts)
    stream = cast(ContextBatches, source.stream())
    assert sorted(stream._units) == list(store.units[:-1])
    seen = torch.cat([next(stream).tokens for _ in range(n)])
    again = torch.cat([next(stream).tokens for _ in range(n)])
    assert sorted(seen.tolist()) == sorted(again.tolist())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 41}, "batch_size=41 is no multiple of .* context length 8, .* take 40"),
        ({"objective": "e2e-ds", "downstream_sites": ["blocks.9.hook_resid_post"]}, "no hook"),
        (
            {"sae": {"variant": "matryoshka", "d_sae": 48, "k": 4}},
            "e2e cannot train this matryoshka",
        ),
        ({"sae": {"variant": "gradient-topk", "d_sae": 48}}, "e2e cannot train this gradient-topk"),
        ({"sae": {"variant": "hierarchical-topk", "d_sae": 48}}, "a reconstruction per budget"),
        (
            {"sae": {"variant": "topk", "d_sae": 48, "multi_k_coefficient": 0.1}},
            "compares two reconstructions",
        ),
    ],
)
def test_what_cannot_be_trained_end_to_end_is_refused_before_anything_is_written(
    small_store, tmp_path, changes, message
):
    with pytest.raises(UsageError, match=message):
        train(e2e(small_store, **changes), out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_arrays_without_a_model_are_refused(tmp_path):
    store = ActivationStore(write_arrays(tmp_path / "s", {"mine": np.ones((4, 8), np.float32)}))
    config = small_config(store, site="mine", objective="e2e")
    with pytest.raises(UsageError, match="arrays without a language model"):
        make_objective(Source([config], torch.device("cpu")))


def test_another_model_than_the_stores_is_refused(small_store, tiny_lm):
    with pytest.raises(UsageError, match="with other weights than tiny has"):
        make_objective(Source([e2e(small_store)], torch.device("cpu"), tiny_lm))

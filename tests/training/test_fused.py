"""The fused step against the step that autograd and torch's Adam make, under the interpreter."""

from typing import Any

import pytest
import torch
from kernels.triton_device import DEVICE
from rest import rest

from saelab.bench.machine import Rates, StepShape
from saelab.bench.step import step_config, time_step
from saelab.config import UsageError
from saelab.kernels.exchange import LatentExchange
from saelab.kernels.torch.zipf import LOOK_EVERY, zipf_budgets
from saelab.kernels.triton import encode
from saelab.kernels.triton.step.rules import Launch
from saelab.sae.abs_topk import AbsTopKConfig
from saelab.sae.batch_topk import BatchTopKConfig
from saelab.sae.context import LossContext
from saelab.sae.feature_choice import FeatureChoiceConfig
from saelab.sae.gradient_topk import GradientTopKConfig
from saelab.sae.hierarchical_topk import HierarchicalTopKConfig
from saelab.sae.k_sparse import KSparseConfig
from saelab.sae.losses import local_loss
from saelab.sae.matching_pursuit import MatchingPursuitConfig
from saelab.sae.matryoshka import MatryoshkaConfig
from saelab.sae.mutual_choice import MutualChoiceConfig
from saelab.sae.topk import TopKConfig
from saelab.training.fused import FusedOptions, FusedStep
from saelab.training.fused_aux import REFIT_EVERY, SHRINK_EVERY
from saelab.types import ActivationBatch

# Two chunks of columns, the second not full; latents that do not fill the last group.
D_IN, D_SAE, K, BATCH, V = 20, 5, 2, 4, 5.0
SMALL = Launch(columns=16, pairs=2, latents=3, slice=3, programs=1)


FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "topk": (TopKConfig, {}),
    "multi-topk": (TopKConfig, {"k": 1, "multi_k_coefficient": 0.125}),
    "abs-topk": (AbsTopKConfig, {}),
    "uncentred-abs-topk": (AbsTopKConfig, {"subtract_b_dec": False}),
    "batch-topk": (BatchTopKConfig, {"k": 1.75}),
    "batch-abs-topk": (AbsTopKConfig, {"selection": "batch"}),
    "hierarchical-topk": (HierarchicalTopKConfig, {"k": 3}),
    "hierarchical-budgets": (HierarchicalTopKConfig, {"k": 4, "budgets": (1, 3, 4)}),
    "gradient-topk": (GradientTopKConfig, {}),
    "gradient-product": (GradientTopKConfig, {"reading": "product"}),
    "raw-gradient": (GradientTopKConfig, {"beta": 2e3, "normalise_gradient": False}),
    "matryoshka": (MatryoshkaConfig, {"fractions": (0.2, 0.2, 0.6)}),
    "mutual-choice": (MutualChoiceConfig, {}),
    "feature-choice": (FeatureChoiceConfig, {"k": 1.5, "mutual_share": 0.0}),
    "k-sparse": (KSparseConfig, {}),
    "falling-k-sparse": (KSparseConfig, {"k": 1, "k_start": 4}),
    "pursuit": (MatchingPursuitConfig, {"k": 5}),
    "matryoshka-sum": (MatryoshkaConfig, {"fractions": (0.4, 0.6), "prefix_loss": "sum"}),
}


def build(form="topk", seed=0, **options):
    cls, given = FORMS[form]
    plain = {"aux_coefficient": 0} if "aux_coefficient" in cls.model_fields else {}
    config = cls(**({"d_sae": D_SAE, "k": K} | plain | given | options))
    sae = config.build(D_IN, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        if "b_enc" in sae.state_dict():
            sae.b_enc.normal_(std=0.1, generator=torch.Generator().manual_seed(seed + 1))
        sae.b_dec.normal_(std=0.1, generator=torch.Generator().manual_seed(seed + 2))
    return sae.to(DEVICE)


def batches(n, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, BATCH, D_IN, generator=generator).to(DEVICE)


def gradients(x):
    """Of some loss; none at one row, as at the last token of a context."""
    grad = x.cos() * 1e-3
    grad[1] = 0
    return grad


def fused(sae, xs, lrs, precision=torch.float32, **options):
    step = FusedStep(sae, FusedOptions(BATCH, V, precision, launch=SMALL, **options))
    errors = []
    for i, (x, lr) in enumerate(zip(xs, lrs, strict=True)):
        step.prepare(LossContext(V, step=i, n_steps=2 * len(xs)))
        step.set_lr(lr)
        step(x, grad=gradients(x))
        errors.append(float(step.mse_sum))
    step.write_back()
    return step, errors


def by_autograd(sae, xs, lrs, dead_after=10**9, clip_norm=float("inf")):
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.0, eps=6.25e-10)
    errors, since = [], torch.zeros(sae.d_sae, dtype=torch.int64, device=DEVICE)
    for i, (x, lr) in enumerate(zip(xs, lrs, strict=True)):
        optimizer.param_groups[0]["lr"] = lr
        dead = since >= dead_after
        dead = dead if dead.any() else None
        context = LossContext(V, dead, step=i, n_steps=2 * len(xs))
        terms = local_loss(sae, ActivationBatch(x, grad=gradients(x)), context)
        since += len(x)
        since[terms.codes.indices[terms.codes.active]] = 0
        sae.observe(terms.codes)
        optimizer.zero_grad()
        terms.total.backward()
        sae.before_optimizer_step()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), clip_norm)
        optimizer.step()
        sae.after_optimizer_step()
        errors.append(float(terms.mse_sum))
    return since, errors


# Tests below show the same of these two.
@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("k-sparse", "pursuit")])
def test_steps_equal_those_of_autograd_and_adam(form):
    ours, theirs = build(form), build(form)
    lrs = (1e-2, 3e-3)
    xs = batches(len(lrs))
    step, errors = fused(ours, xs, lrs)
    since, expected = by_autograd(theirs, xs, lrs)
    torch.testing.assert_close(torch.tensor(errors), torch.tensor(expected))
    assert torch.equal(step.since_fired, since)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(
            ours.get_parameter(name), parameter, atol=2e-6, rtol=1e-4, msg=lambda m, n=name: n + m
        )
    for name, buffer in theirs.named_buffers():
        if name == "n_observed":  # Only autograd counts steps there.
            continue
        torch.testing.assert_close(ours.get_buffer(name), buffer, msg=lambda m, n=name: n + m)
    norms = ours.W_dec.norm(dim=1) if ours.unit_atoms else torch.ones(1)
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-6, rtol=0)


def test_a_latent_that_fires_on_every_token_is_split_and_sums_the_same():
    ours, theirs = build(), build()
    for sae in (ours, theirs):
        with torch.no_grad():
            sae.b_enc[4] = 50.0
    xs = batches(1)
    fused(ours, xs, (1e-2,))
    by_autograd(theirs, xs, (1e-2,))
    torch.testing.assert_close(ours.W_dec[4], theirs.W_dec[4], atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(ours.W_enc[:, 4], theirs.W_enc[:, 4], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("form", "clip_norm"),
    [("abs-topk", 0.05), ("matryoshka", 0.05), *rest(("topk", None), ("multi-topk", 0.05))],
)
def test_aux_k_and_clipping_are_those_of_autograd(form, clip_norm):
    """Twenty latents of which few fire; they are dead from the second batch on."""
    options = {"d_sae": 20, "aux_coefficient": 0.5, "aux_k": 3}
    ours, theirs = build(form, **options), build(form, **options)
    xs, lrs = batches(2), (1e-2,) * 2
    limit = {} if clip_norm is None else {"clip_norm": clip_norm}
    step, errors = fused(ours, xs, lrs, dead_after=BATCH, **limit)
    since, expected = by_autograd(theirs, xs, lrs, dead_after=BATCH, **limit)
    assert step.graphs.aux.capacity == 20
    assert float(step.penalties["aux_k"][1]) > 0
    if clip_norm is not None:
        assert float(step.gradient_norm) > clip_norm
    torch.testing.assert_close(torch.tensor(errors), torch.tensor(expected))
    assert torch.equal(step.since_fired, since)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(
            ours.get_parameter(name), parameter, atol=3e-6, rtol=1e-4, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("by_gram", [False, True])
def test_a_pursuit_by_products_and_by_a_gram_matrix_is_that_of_autograd(by_gram, monkeypatch):
    """Also of a row without any step, and of one that chooses an atom again."""
    monkeypatch.setattr(encode, "gram_pays", lambda *_args, **_options: by_gram)
    options = {"d_sae": 24, "aux_coefficient": 0.5, "aux_k": 3}
    ours, theirs = (build("pursuit", **options) for _ in range(2))
    xs, lrs = batches(2), (1e-2,) * 2
    with torch.no_grad():
        for sae in (ours, theirs):
            # Only the first two atoms reach the first two columns. Neither is an axis: Adam makes
            # a step of any gradient, so also of what rounding leaves of one along the atom.
            sae.W_dec[:, :2] = sae.W_dec[:2, 2:] = 0
            sae.W_dec[:2, :2] = torch.tensor([[0.8, 0.6], [-0.96, 0.28]])
            sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec, dim=1))
        xs[0, :2] = ours.b_dec
        xs[0, 1, :2] += torch.tensor([-3.0, 9.0], device=DEVICE)
        chosen = ours.pursue(xs[0])
    assert not chosen.values[0].any()
    assert chosen.indices[1].tolist() == [1, 0, 1, 0, 1]
    rules = {"dead_after": BATCH, "clip_norm": 0.05}
    step, errors = fused(ours, xs, lrs, **rules)
    since, expected = by_autograd(theirs, xs, lrs, **rules)
    assert float(step.gradient_norm) > 0.05
    assert float(step.penalties["aux_k"][1]) > 0
    assert errors == pytest.approx(expected, rel=1e-5)
    assert torch.equal(step.since_fired, since)
    torch.testing.assert_close(ours.W_dec, theirs.W_dec, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(ours.b_dec, theirs.b_dec, atol=2e-6, rtol=1e-4)


def test_clipping_counts_a_matrix_that_encodes_and_decodes_once():
    ours, theirs = build("k-sparse"), build("k-sparse")
    xs, lrs = batches(1), (1e-2,)
    step, _ = fused(ours, xs, lrs, clip_norm=0.05)
    by_autograd(theirs, xs, lrs, clip_norm=0.05)
    gradients_ = [p.grad for p in theirs.parameters()]
    assert float(torch.stack([g.norm() for g in gradients_]).norm()) == pytest.approx(0.05)
    assert float(step.gradient_norm) > 0.05
    torch.testing.assert_close(ours.W_dec, theirs.W_dec, atol=2e-6, rtol=1e-4)


def test_clipping_keeps_the_sums_that_it_would_make_twice():
    """To the bit, where latents are not split: it is the same sum."""
    states = []
    for again in (0, 100):
        launch = Launch(columns=16, slice=100, again=again)
        step = FusedStep(build(), FusedOptions(BATCH, V, clip_norm=0.05, launch=launch))
        step.set_lr(1e-2)
        step(batches(1)[0])
        assert float(step.gradient_norm) > 0.05
        states.append(step.tensors())
    torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("form", ["mutual-choice", *rest("feature-choice")])
def test_under_used_latents_are_revived_as_by_autograd(form, monkeypatch):
    """Densities are those of the last batch, and looked at after each."""
    for module in ("saelab.training.fused_aux", "saelab.sae.zipf"):
        monkeypatch.setattr(f"{module}.LOOK_EVERY", 1)
    zipf = {"aux_zipf": 0.9, "density_window": BATCH, "zipf_exponent": 0.5}
    options = {"d_sae": 20, "k": 2, "aux_coefficient": 0.5, "aux_k": 3, **zipf}
    ours, theirs = build(form, **options), build(form, **options)
    xs, lrs = batches(3), (1e-2,) * 3
    step, errors = fused(ours, xs, lrs)
    _, expected = by_autograd(theirs, xs, lrs)
    assert float(step.penalties["aux_k"][1]) > 0
    torch.testing.assert_close(torch.tensor(errors), torch.tensor(expected))
    theirs.n_observed.zero_()  # Only autograd counts steps there.
    ours.usage.mark_()  # Autograd looked after the last batch too.
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(
            ours.state_dict()[name], tensor, atol=3e-6, rtol=1e-4, equal_nan=True, msg=name
        )


def test_feature_choice_begins_as_mutual_choice_also_in_the_fused_step():
    ours, theirs = (build("feature-choice", mutual_share=0.5, k=1.6) for _ in range(2))
    step = FusedStep(ours, FusedOptions(BATCH, V, torch.float32, launch=SMALL))
    chosen = []
    for i, x in enumerate(batches(2)):
        context = LossContext(V, step=i, n_steps=2)
        codes = local_loss(theirs, ActivationBatch(x), context).codes
        step.prepare(context)
        step(x)
        assert torch.equal(step.codes.dense() != 0, codes.dense() != 0)
        theirs.observe(codes)
        chosen.append(torch.bincount(step.codes.indices.long(), minlength=D_SAE).tolist())
    budgets = zipf_budgets(D_SAE, FeatureChoiceConfig(d_sae=D_SAE, k=1.6).usage_rules(), BATCH)
    assert sorted(chosen[0]) != sorted(budgets.counts.tolist()) == sorted(chosen[1])


def room_after(step, number, n_dead, dead_after):
    step.since_fired.zero_()
    step.since_fired[:n_dead] = dead_after
    step.graphs.aux.look(number)
    return step.graphs.aux.capacity


def test_room_for_dead_latents_is_made_before_there_are_any():
    """It grows by a half at least, and seldom shrinks: each size costs a new graph."""
    step = FusedStep(build(d_sae=600, aux_coefficient=1), FusedOptions(BATCH, V, dead_after=1000))
    assert step.rules.aux is not None
    assert step.graphs.aux.room_for_dead(step.rules.aux) == 0
    step.since_fired.fill_(1000 - LOOK_EVERY * BATCH)
    step.since_fired[:300] -= 1
    assert step.graphs.aux.room_for_dead(step.rules.aux) == 384
    step.since_fired[1:] -= 1
    step.since_fired[0] += 1
    assert step.graphs.aux.room_for_dead(step.rules.aux) == 128
    found = [room_after(step, LOOK_EVERY, n, 1000) for n in (250, 260, 390, 100, 0)]
    assert found == [256, 384, 600, 600, 600]
    found = [room_after(step, SHRINK_EVERY, n, 1000) for n in (500, 300, 250, 100, 0)]
    assert found == [600, 384, 384, 128, 0]
    assert room_after(step, LOOK_EVERY + 1, 100, 1000) == 0
    assert room_after(step, LOOK_EVERY, 300, 1000) == 384
    assert room_after(step, REFIT_EVERY, 250, 1000) == 256


def test_dead_latents_are_counted_after_the_step_before_the_count_is_read(monkeypatch):
    """A device is asked a whole step earlier; what is loaded in between is counted anew."""
    options = FusedOptions(BATCH, V, dead_after=4 * 2 * BATCH, launch=SMALL)
    step = FusedStep(build(d_sae=40, aux_coefficient=1), options)
    aux, rules, read = step.graphs.aux, step.rules.aux, LatentExchange.most
    assert rules is not None
    assert aux.look_every(rules) == 2
    waited = []
    monkeypatch.setattr(LatentExchange, "most", lambda *a: waited.append(1) or read(*a))
    expected = []
    for x in batches(8):
        expected.append(aux.room_for_dead(rules))
        waited.clear()
        step(x)
        assert bool(waited) == (step.n_steps == 1)
    assert expected[::2] == [0, 0, 0, 40]
    assert aux.capacity == 40
    step.load({**step.tensors(), "since_fired": torch.zeros_like(step.since_fired)})
    waited.clear()
    step.graphs.aux.look(SHRINK_EVERY)
    assert waited
    assert aux.capacity == 0


def test_where_latents_die_within_few_steps_room_is_made_for_few_steps():
    """Else it would be for all latents, since each is silent for some steps."""
    step = FusedStep(build(d_sae=600, aux_coefficient=1), FusedOptions(BATCH, V, dead_after=40))
    step.since_fired.fill_(40 - 3 * BATCH)
    assert step.rules.aux is not None
    assert step.graphs.aux.look_every(step.rules.aux) == 2
    assert step.graphs.aux.room_for_dead(step.rules.aux) == 0
    step.since_fired += BATCH
    assert step.graphs.aux.room_for_dead(step.rules.aux) == 600


def test_bfloat16_products_leave_float32_weights_near_those_of_float32():
    sae = build()
    start = sae.W_enc.detach().clone()
    step, errors = fused(sae, batches(1), (1e-3,), torch.bfloat16)
    _, exact = by_autograd(build(), batches(1), (1e-3,))
    assert errors[0] == pytest.approx(exact[0], rel=2e-2)
    assert step.weights.enc.value.dtype == torch.float32
    assert 0 < float((sae.W_enc - start).abs().max().detach()) < 2e-3


@pytest.mark.parametrize("form", ["abs-topk", *rest("topk")])
def test_selection_in_float32_finds_what_rounding_hides(form):
    """Pre-activations near 100, which bfloat16 rounds to steps of a half."""
    chosen = []
    for ties in ("index", "float32"):
        sae = build(form, d_sae=16)
        with torch.no_grad():
            sae.b_enc.fill_(100)
        step = FusedStep(sae, FusedOptions(BATCH, V, ties=ties, launch=SMALL))
        W, bias = step.weights.enc.copy.double(), step.weights.b_enc.copy.double()
        centred = (batches(1)[0].bfloat16().double() - sae.b_dec.detach()).bfloat16().double()
        best = (centred @ W.T + bias).abs().topk(K).indices.sort().values
        step(batches(1)[0])
        chosen.append(torch.equal(step.codes.indices.sort().values.to(best), best))
    assert chosen == [False, True]


def test_selection_in_float32_is_refused_where_rows_have_several_edges():
    with pytest.raises(UsageError, match="is a BatchTopK SAE"):
        FusedStep(build("batch-topk"), FusedOptions(BATCH, V, ties="float32"))


def test_a_copied_state_continues_to_the_same_bits():
    x, y = batches(2)
    first, rest = (
        FusedStep(build(seed=seed), FusedOptions(BATCH, V, torch.bfloat16, launch=SMALL))
        for seed in (0, 1)
    )
    first.set_lr(1e-2)
    first(x)
    rest.set_lr(1e-3)
    rest.load(first.tensors())
    assert float(rest.weights.lr) == 1e-2
    first(y)
    rest(y)
    for name, tensor in first.tensors().items():
        torch.testing.assert_close(
            rest.tensors()[name], tensor, rtol=0, atol=0, equal_nan=True, msg=name
        )
    rest.set_lr(1e-3)
    assert float(rest.weights.lr) == 1e-3


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (TopKConfig(d_sae=600, k=129, multi_k_coefficient=0.1), "has 516 latents"),
        (TopKConfig(d_sae=D_SAE, k=D_SAE, multi_k_coefficient=0.1), "is all its latents"),
        (TopKConfig(d_sae=600, k=513, aux_coefficient=0), "k=513"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused_with_its_value(config, named):
    with pytest.raises(UsageError, match=named):
        FusedStep(config.build(D_IN), FusedOptions(BATCH, V))


def test_a_batch_of_another_size_is_refused():
    step = FusedStep(build(), FusedOptions(BATCH, V))
    with pytest.raises(UsageError, match="keep every batch whole"):
        step(torch.zeros(BATCH - 1, D_IN, device=DEVICE))


def test_the_time_of_a_step_comes_with_its_parts_beside_the_floor():
    rates, shape = Rates(matmul=1e9, copy=1e9), StepShape(16, 4, 2, 2, moments="bfloat16")
    config = step_config("topk", shape, precision="float32").model_copy(update={"step": "fused"})
    result = time_step(config, shape, rates, torch.device(DEVICE), steps=1)
    assert (result.way, config.moments) == ("fused", "bfloat16")
    assert result.ratio == result.seconds / rates.floor(shape)
    assert set(result.stages) == {"encode", "select", "sort", "decode", "update"}
    assert min(result.stages.values()) > 0


def test_the_time_of_aux_k_is_measured_with_dead_latents_that_stay_dead():
    rates, shape = Rates(matmul=1e9, copy=1e9), StepShape(16, 12, 2, 2, dead=0.25)
    config = step_config("topk", shape, precision="float32").model_copy(update={"step": "fused"})
    result = time_step(config, shape, rates, torch.device(DEVICE), steps=1)
    assert min(result.stages[f"AuxK's {part}"] for part in ("codes", "gradients")) > 0
    plain = config.model_copy(update={"sae": config.sae.model_copy(update={"aux_coefficient": 0})})
    with pytest.raises(UsageError, match="latents cannot be dead in a step without"):
        time_step(plain, shape, rates, torch.device(DEVICE), steps=1)

"""What arXiv 2302.12715 says of learning from numbers that the encoder did not see."""

import pytest
import torch
from conftest import small_config

from saelab.activations.arrays import write_arrays
from saelab.config import UsageError
from saelab.sae.context import LossContext
from saelab.sae.variants import variants
from saelab.shard import Replicas
from saelab.training.loop import train
from saelab.training.objectives import Local, Masked
from saelab.types import ActivationBatch

D, M = 10, 24


def configured(name: str):
    config = variants()[name]
    return config(**{"d_sae": M} | ({"k": 3} if "k" in config.model_fields else {}))


ONE_RECONSTRUCTION = [
    name
    for name in variants()
    if not (configured(name).several_reconstructions or configured(name).decoder_problem)
]


def made(name: str):
    config = configured(name)
    sae = config.build(D, torch.Generator().manual_seed(0)).double()
    rows = torch.randn(40, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sae.initialise(rows)
    grad = torch.ones_like(rows[:7]) if config.needs_gradient else None
    return sae, ActivationBatch(rows[:7], grad=grad)


@pytest.mark.parametrize("by_row", [False, True], ids=["dimensions", "entries"])
def test_replicas_hide_together_what_one_process_hides(by_row):
    masked, context, x = Masked(0.3, by_row), LossContext(1.0, step=2), torch.zeros(6, D)
    parts = [masked.hidden(x[:2], context, Replicas(number, 3)) for number in range(3)]
    expected = masked.hidden(x, context)
    assert torch.equal(torch.cat(parts) if by_row else parts[1], expected)


@pytest.mark.parametrize("by_row", [False, True], ids=["dimensions", "entries"])
@pytest.mark.parametrize(("share", "n"), [(0.1, 1), (0.3, 3), (0.01, 1), (0.99, 9)])
def test_so_many_numbers_are_hidden_anew_in_every_step_and_alike_when_repeated(share, n, by_row):
    x = torch.zeros(5, D)
    first, again, later = (
        Masked(share, by_row).hidden(x, LossContext(1.0, step=step)) for step in (0, 0, 1)
    )
    assert first.shape == ((5 if by_row else 1), D)
    assert (first.sum(dim=1) == n).all()
    assert torch.equal(first, again)
    draws = [Masked(share, by_row).hidden(x, LossContext(1.0, step=s)) for s in range(40)]
    assert any(not torch.equal(first, draw) for draw in (later, *draws))
    assert torch.stack(draws).any(dim=0).all() or n < 3


@pytest.mark.parametrize("name", ONE_RECONSTRUCTION)
def test_the_loss_is_the_error_at_what_was_hidden_and_the_encoder_saw_the_rest(name):
    sae, batch = made(name)
    context = LossContext(2.0, step=3)
    hidden = Masked(0.3, by_row=False).hidden(batch.x, context)[0]
    _, terms = Masked(0.3, by_row=False).loss(sae, batch, context, 1.0)
    seen = batch.x.clone()
    seen[:, ~hidden] = sae.input_bias[~hidden] + (seen - sae.input_bias)[:, ~hidden] / 0.7
    seen[:, hidden] = sae.input_bias[hidden]
    done = sae.training_pass(ActivationBatch(seen, batch.x, batch.grad), context)
    x_hat = done.codes.dense() @ sae.W_dec + sae.b_dec
    error = (batch.x - x_hat).detach()[:, hidden].square().sum(dim=1).mean() / 0.3
    parts = sum(float(weight * part.detach()) for weight, part in done.parts.values())
    assert float(terms.total.detach()) == pytest.approx(float(error) / 2.0 + parts, rel=1e-6)
    other = batch.x.clone()
    other[:, hidden] += 5
    changed = Masked(0.3, by_row=False).loss(
        sae, ActivationBatch(other, grad=batch.grad), context, 1.0
    )
    torch.testing.assert_close(changed[1].codes.dense(), terms.codes.dense())


def test_no_gradient_reaches_an_atom_where_it_was_seen():
    sae, batch = made("topk")
    context = LossContext(1.0)
    _, terms = Masked(0.3, by_row=False).loss(sae, batch, context, 1.0)
    terms.total.backward()
    hidden = Masked(0.3, by_row=False).hidden(batch.x, context)[0]
    assert sae.W_dec.grad is not None
    assert (sae.W_dec.grad[:, ~hidden] == 0).all()
    assert (sae.W_dec.grad[:, hidden] != 0).any()


@pytest.mark.parametrize("by_row", [False, True])
def test_averaged_over_what_is_hidden_an_sae_that_ignores_x_has_the_whole_error(by_row):
    sae, batch = made("topk")
    with torch.no_grad():
        sae.W_dec.zero_()
    local = float(Local().loss(sae, batch, LossContext(1.0), 1.0)[1].total.detach())
    draws = [
        float(Masked(0.3, by_row).loss(sae, batch, LossContext(1.0, step=s), 1.0)[1].total.detach())
        for s in range(400)
    ]
    assert sum(draws) / len(draws) == pytest.approx(local, rel=0.1)


def test_a_masked_run_is_saved_like_any_other_and_repeats(small_store, tmp_path):
    config = small_config(small_store, objective="masked", hide="entries", hidden_share=0.25)
    runs = [train(config, out=tmp_path / name, device="cpu") for name in ("a", "b")]
    first, second = ((run.path / "weights.safetensors").read_bytes() for run in runs)
    assert first == second
    plain = train(small_config(small_store), out=tmp_path / "c", device="cpu")
    assert first != (plain.path / "weights.safetensors").read_bytes()


def test_what_cannot_be_masked_is_refused(small_store, mlp_store, tmp_path):
    nested = {"variant": "matryoshka", "d_sae": 32, "k": 4}
    sites = {"site": "blocks.1.ln2.hook_out", "target_site": "blocks.1.mlp.hook_post"}
    write_arrays(tmp_path / "thin", {"x": torch.arange(60.0)[:, None].numpy()})
    thin = small_config(small_store, activations=tmp_path / "thin", site="x", objective="masked")
    for config, says in (
        (small_config(small_store, sae=nested, objective="masked"), "several reconstructions"),
        (small_config(mlp_store, **sites, objective="masked"), "reconstructs what it reads"),
        (thin, "one dimension"),
    ):
        with pytest.raises(UsageError, match=says):
            train(config, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()

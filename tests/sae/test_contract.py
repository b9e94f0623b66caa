"""What every variant promises; a new variant is tested here as soon as it is in the union."""

import json

import pytest
import torch

from saelab.config import UsageError
from saelab.sae.base import LossContext
from saelab.sae.storage import load_sae, save_sae
from saelab.sae.variants import SAE_CONFIG, VARIANTS
from saelab.types import ActivationBatch

D_IN, D_SAE, K = 12, 40, 4


@pytest.fixture(params=VARIANTS, ids=lambda cls: cls.model_fields["variant"].default)
def sae(request):
    config = request.param(d_sae=D_SAE, k=K)
    return config.build(D_IN, torch.Generator().manual_seed(0))


@pytest.fixture
def x():
    return torch.randn(64, D_IN, generator=torch.Generator().manual_seed(1))


def step(sae, optimizer, x, context) -> float:
    optimizer.zero_grad()
    terms = sae.loss(ActivationBatch(x), context)
    terms.total.backward()
    sae.before_optimizer_step()
    optimizer.step()
    sae.after_optimizer_step()
    return float(terms.total.detach())


def test_shapes_are_the_promised_ones(sae, x):
    codes = sae.encode(x)
    assert (sae.d_in, sae.d_sae) == (D_IN, D_SAE)
    assert codes.values.shape == codes.indices.shape == (64, K)
    assert sae.decode(codes).shape == x.shape


def test_no_row_has_more_than_k_active_latents(sae, x):
    assert int(sae.encode(x).active.sum(1).max()) <= K


def test_decode_equals_the_dense_product(sae, x):
    codes = sae.encode(x)
    torch.testing.assert_close(sae.decode(codes), codes.dense() @ sae.W_dec + sae.b_dec)


def test_only_fired_latents_have_encoder_gradient(sae, x):
    terms = sae.loss(ActivationBatch(x[:4]), LossContext(1.0))
    terms.total.backward()
    silent = terms.codes.firing_counts() == 0
    assert silent.any()
    assert not sae.W_enc.grad[:, silent].any()
    assert sae.W_enc.grad[:, ~silent].any(dim=0).all()


def test_gradients_are_those_of_the_plain_formula(sae, x):
    from saelab.pursuit.select import abs_top_k, top_k

    select = abs_top_k if sae.config.variant == "abs-topk" else top_k
    with torch.no_grad():
        sae.b_dec += 0.3
    rows = x.clone().requires_grad_()
    plain = [
        p.detach().clone().requires_grad_() for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    ]
    W_enc, b_enc, W_dec, b_dec = plain
    codes = select((rows - b_dec) @ W_enc + b_enc, K)
    (rows - codes.dense() @ W_dec - b_dec).pow(2).sum(-1).mean().backward()
    fast_rows = x.clone().requires_grad_()
    sae.loss(ActivationBatch(fast_rows), LossContext(1.0)).total.backward()
    torch.testing.assert_close(fast_rows.grad, rows.grad)
    fast = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    for mine, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(mine.grad, expected.grad)


def test_aux_k_gradient_reaches_the_encoder_and_decoder_of_dead_latents(sae, x):
    few = ActivationBatch(x[:4])
    dead = sae.loss(few, LossContext(1.0)).codes.firing_counts() == 0
    terms = sae.loss(few, LossContext(1.0, dead))
    assert "aux_k" in terms.parts
    terms.total.backward()
    assert sae.W_enc.grad[:, dead].any()
    assert sae.W_dec.grad[dead].any()


def test_decoder_gradient_is_tangent_and_rows_are_unit_after_a_step(sae, x):
    sae.loss(ActivationBatch(x), LossContext(1.0)).total.backward()
    sae.before_optimizer_step()
    radial = (sae.W_dec.grad * sae.W_dec).sum(1)
    torch.testing.assert_close(radial, torch.zeros(D_SAE), atol=1e-5, rtol=0)
    torch.optim.Adam(sae.parameters(), lr=0.1).step()
    sae.after_optimizer_step()
    assert float((sae.W_dec.detach().norm(dim=1) - 1).abs().max()) < 1e-5


def test_the_loss_falls(sae, x):
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    losses = [step(sae, optimizer, x, LossContext(float(D_IN))) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_planted_dictionary_is_recovered(sae):
    """Rows made of two of sixteen unit atoms: training finds each atom (up to sign)."""
    generator = torch.Generator().manual_seed(3)
    atoms = torch.nn.functional.normalize(torch.randn(16, D_IN, generator=generator), dim=1)
    small = type(sae.config)(d_sae=32, k=2).build(D_IN, generator)
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-2)
    for _ in range(1500):
        which = torch.rand(256, 16, generator=generator).topk(2).indices
        size = 1 + torch.rand(256, 2, generator=generator)
        x = (atoms[which] * size[:, :, None]).sum(1)
        step(small, optimizer, x, LossContext(5.0))
    cosine = (atoms @ small.W_dec.detach().T).abs().max(dim=1).values
    assert float(cosine.median()) > 0.95


def test_saving_and_loading_is_the_identity(sae, x, tmp_path):
    save_sae(sae, tmp_path / "sae.safetensors")
    loaded = load_sae(tmp_path / "sae.safetensors")
    assert loaded.config == sae.config
    assert torch.equal(loaded.reconstruct(x), sae.reconstruct(x))


def test_configuration_survives_json(sae):
    assert SAE_CONFIG.validate_python(json.loads(sae.config.model_dump_json())) == sae.config


def test_equal_seeds_give_equal_weights(sae):
    again = sae.config.build(D_IN, torch.Generator().manual_seed(0))
    assert torch.equal(again.W_enc, sae.W_enc)


@pytest.mark.parametrize("shape", [(3, D_IN + 1), (2, 3, D_IN), (0, D_IN), (D_IN,)])
def test_other_shapes_are_refused_with_both_shapes(sae, shape):
    with pytest.raises(Exception, match=str(D_IN)):
        sae.encode(torch.zeros(shape))


def test_one_row_is_enough(sae, x):
    torch.testing.assert_close(sae.reconstruct(x[:1]), sae.reconstruct(x)[:1])


def test_nan_is_refused(sae, x):
    with pytest.raises(UsageError, match="NaN"):
        sae.encode(x.index_fill(0, torch.tensor([3]), float("nan")))


def test_k_above_the_width_is_refused_with_the_remedy(sae):
    with pytest.raises(UsageError, match="k=41 exceeds d_sae=40; lower --k"):
        type(sae.config)(d_sae=40, k=41).build(D_IN)

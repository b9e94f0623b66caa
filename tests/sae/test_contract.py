"""What every variant promises; a new variant is tested here as soon as it is in the union."""

import json

import pytest
import torch
from sae.cases import encoder_gradient, loss_of, train_step

from saelab.config import UsageError
from saelab.sae.aux_k import AuxKConfig
from saelab.sae.base import LossContext
from saelab.sae.batch_selection import AbstractBatchSelectionSAE
from saelab.sae.jumprelu import JumpReLU
from saelab.sae.storage import load_sae, save_sae
from saelab.sae.variants import SAE_CONFIG, VARIANTS

D_IN, D_SAE, K = 12, 40, 4
FORMS = [
    *({"variant": cls.model_fields["variant"].default} for cls in VARIANTS),
    {"variant": "abs-topk", "selection": "batch"},
    {"variant": "matryoshka", "random_prefixes": 3},
    {"variant": "jumprelu", "subtract_b_dec": True},
]
PLAIN = ("topk", "batch-topk", "abs-topk", "gradient-topk")
UNIT_NORM = {cls.model_fields["variant"].default for cls in VARIANTS} - {"k-sparse"}


def rows(n=64, seed=1):
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed))


def config_of(form, **changes):
    return SAE_CONFIG.validate_python({"d_sae": D_SAE, "k": K} | form | changes)


@pytest.fixture(params=FORMS, ids=lambda form: "-".join(map(str, form.values())))
def sae(request):
    made = config_of(request.param).build(D_IN, torch.Generator().manual_seed(0))
    made.initialise(rows())
    made.calibrate(rows())
    return made


@pytest.fixture
def x():
    return rows()


def test_shapes_are_the_promised_ones(sae, x):
    codes = sae.encode(x)
    assert (sae.d_in, sae.d_sae) == (D_IN, D_SAE)
    assert len(codes) == len(codes.values) == 64
    assert codes.values.shape == codes.indices.shape
    assert sae.W_enc.shape == (D_IN, D_SAE)
    assert sae.decode(codes).shape == x.shape


def test_the_promised_l0_holds(sae, x):
    codes = sae.encode(x)
    if isinstance(sae, JumpReLU):
        pytest.skip("learned, not imposed: see test_jumprelu.py")
    if isinstance(sae, AbstractBatchSelectionSAE):
        assert codes.mean_l0() == K
    else:
        assert int(codes.active.sum(1).max()) <= K


def test_no_latent_is_active_twice_in_a_row(sae, x):
    for codes in (sae.encode(x), loss_of(sae, x, LossContext(1.0)).codes):
        places = (codes.rows() * D_SAE + codes.indices)[codes.active]
        assert len(places.unique()) == len(places)


def test_decode_equals_the_dense_product(sae, x):
    for codes in (sae.encode(x), loss_of(sae, x, LossContext(1.0)).codes):
        torch.testing.assert_close(sae.decode(codes), codes.dense() @ sae.W_dec + sae.b_dec)


def test_the_pass_returns_the_reconstruction_of_its_codes(sae, x):
    from saelab.types import ActivationBatch

    done = sae.training_pass(ActivationBatch(x, grad=rows(seed=5)), LossContext(1.0))
    torch.testing.assert_close(done.x_hat, sae.decode(done.codes))


def test_a_training_pass_changes_nothing(sae, x):
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    loss_of(sae, x, LossContext(1.0))
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


def test_only_fired_latents_have_encoder_gradient(sae, x):
    terms = loss_of(sae, x[:4], LossContext(1.0))
    terms.total.backward()
    silent = terms.codes.firing_counts() == 0
    assert silent.any()
    assert not encoder_gradient(sae)[:, silent].any()
    assert encoder_gradient(sae)[:, ~silent].any(dim=0).all()


def test_gradients_are_those_of_the_plain_formula(sae, x):
    if sae.config.variant not in PLAIN:
        pytest.skip("has an error of its own, tested with the variant")
    given = x.clone().requires_grad_()
    terms = loss_of(sae, given, LossContext(1.0))
    terms.total.backward()
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    W_enc, b_enc, W_dec, b_dec = (getattr(sae, n).detach().clone() for n in names)
    plain = [p.requires_grad_() for p in (W_enc, b_enc, W_dec, b_dec, x.clone())]
    z = ((plain[4] - b_dec) @ W_enc + b_enc) * (terms.codes.dense() != 0)
    (plain[4] - z @ W_dec - b_dec).pow(2).sum(-1).mean().backward()
    for mine, expected in zip(
        [*(getattr(sae, n).grad for n in names), given.grad], plain, strict=True
    ):
        torch.testing.assert_close(mine, expected.grad)


def test_aux_k_gradient_reaches_the_encoder_and_decoder_of_dead_latents(sae, x):
    if not isinstance(sae.config, AuxKConfig):
        pytest.skip("has no AuxK")
    dead = loss_of(sae, x[:4], LossContext(1.0)).codes.firing_counts() == 0
    terms = loss_of(sae, x[:4], LossContext(1.0, dead))
    assert "aux_k" in terms.parts
    terms.total.backward()
    assert encoder_gradient(sae)[:, dead].any()
    assert sae.W_dec.grad[dead].any()


def test_aux_k_leaves_alone_what_fires_in_the_batch(sae, x):
    if not isinstance(sae.config, AuxKConfig):
        pytest.skip("has no AuxK")
    silent = loss_of(sae, x, LossContext(1.0)).codes.firing_counts() == 0
    everything = torch.ones(D_SAE, dtype=torch.bool)
    totals = [loss_of(sae, x, LossContext(1.0, dead)).total for dead in (everything, silent)]
    assert torch.equal(*totals)


def test_decoder_gradient_is_tangent_and_rows_are_unit_after_a_step(sae, x):
    if sae.config.variant not in UNIT_NORM:
        pytest.skip("has free atoms")
    loss_of(sae, x, LossContext(1.0)).total.backward()
    sae.before_optimizer_step()
    radial = (sae.W_dec.grad * sae.W_dec).sum(1)
    torch.testing.assert_close(radial, torch.zeros(D_SAE), atol=1e-5, rtol=0)
    torch.optim.Adam(sae.parameters(), lr=0.1).step()
    sae.after_optimizer_step()
    assert float((sae.W_dec.detach().norm(dim=1) - 1).abs().max()) < 1e-5


def test_the_loss_falls(sae, x):
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    losses = [train_step(sae, optimizer, x, LossContext(float(D_IN))) for _ in range(100)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.unchecked
def test_a_planted_dictionary_is_recovered(sae):
    """Rows made of two of sixteen unit atoms: training finds each atom (up to sign)."""
    generator, steps = torch.Generator().manual_seed(3), 500
    atoms = torch.nn.functional.normalize(torch.randn(16, D_IN, generator=generator), dim=1)
    changes = {"fractions": (0.5, 0.5)} if sae.config.variant == "matryoshka" else {}
    small = config_of(sae.config.model_dump(), d_sae=32, k=2, **changes).build(D_IN, generator)
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-2)
    for step in range(steps):
        which = torch.rand(128, 16, generator=generator).topk(2).indices
        size = 1 + torch.rand(128, 2, generator=generator)
        x = (atoms[which] * size[:, :, None]).sum(1)
        train_step(small, optimizer, x, LossContext(5.0, step=step, n_steps=steps))
    found = torch.nn.functional.normalize(small.W_dec.detach(), dim=1)
    cosine = (atoms @ found.T).abs().max(dim=1).values
    assert float(cosine.median()) > 0.85


def test_saving_and_loading_is_the_identity(sae, x, tmp_path):
    save_sae(sae, tmp_path / "sae.safetensors")
    loaded = load_sae(tmp_path / "sae.safetensors")
    assert loaded.config == sae.config
    assert torch.equal(loaded.reconstruct(x), sae.reconstruct(x))


def test_configuration_survives_json(sae):
    assert SAE_CONFIG.validate_python(json.loads(sae.config.model_dump_json())) == sae.config


def test_equal_seeds_give_equal_weights(sae):
    again = sae.config.build(D_IN, torch.Generator().manual_seed(0))
    assert torch.equal(again.W_dec, sae.W_dec)


@pytest.mark.parametrize("shape", [(3, D_IN + 1), (2, 3, D_IN), (0, D_IN), (D_IN,)])
def test_other_shapes_are_refused_with_both_shapes(sae, shape):
    with pytest.raises(Exception, match=str(D_IN)):
        sae.encode(torch.zeros(shape))


def test_a_rows_codes_do_not_depend_on_its_neighbours(sae, x):
    torch.testing.assert_close(sae.reconstruct(x[:1]), sae.reconstruct(x)[:1])


def test_nan_is_refused(sae, x):
    with pytest.raises(UsageError, match="NaN"):
        sae.encode(x.index_fill(0, torch.tensor([3]), float("nan")))


def test_k_above_the_width_is_refused_with_the_remedy(sae):
    with pytest.raises(UsageError, match="k=41 exceeds d_sae=40; lower --k"):
        config_of(sae.config.model_dump(), k=41).build(D_IN)


@pytest.mark.parametrize("scale", [0.125, 8.0])
def test_rescaling_moves_every_parameter_together(sae, x, scale):
    """An SAE trained on scale * x becomes one of x: same latents, values and error over scale."""
    codes, x_hat = sae.encode(x), sae.reconstruct(x)
    sae.rescale(scale)
    again = sae.encode(x / scale)
    assert torch.equal(again.indices[again.active], codes.indices[codes.active])
    torch.testing.assert_close(again.values * scale, codes.values)
    torch.testing.assert_close(sae.reconstruct(x / scale) * scale, x_hat)

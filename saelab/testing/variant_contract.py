"""What every variant promises, as pytest tests.

A package runs them for its own variant from a file of its tests:

    from saelab.testing.variant_contract import *
    FORMS = [{"variant": "my-variant"}, {"variant": "my-variant", "option": 3}]

and anybody for all installed variants, one of them by `-k`:

    pytest --pyargs saelab.testing.variant_contract -k my-variant
"""

import json
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.sae.aux_k import AuxKConfig
from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.sae.interop.convert import to_foreign
from saelab.sae.linear import linearize
from saelab.sae.preselecting import SelectingByThese
from saelab.sae.storage import load_sae, save_sae
from saelab.sae.variants import SAE_CONFIG, check_variant
from saelab.testing.steps import (
    encoder_gradient,
    gradient_of,
    loss_of,
    made_of,
    optimizer_of,
    train_step,
)
from saelab.testing.variant_forms import (  # noqa: F401 - for those who import the contract
    D_IN,
    D_SAE,
    FORMS,
    PLANTED,
    K,
    config_of,
    pytest_generate_tests,
    rows,
)
from saelab.types import ActivationBatch


@pytest.fixture
def sae(request: pytest.FixtureRequest) -> AbstractSAE:
    """An SAE as it starts training, and as it encodes then."""
    made = config_of(request.param).build(D_IN, torch.Generator().manual_seed(0))
    made.initialise(rows())
    made.calibrate(rows())
    return made


@pytest.fixture
def x() -> Float[Tensor, "n d_in"]:
    """Rows to encode."""
    return rows()


def test_shapes_are_the_promised_ones(sae: AbstractSAE, x: Float[Tensor, "n d_in"]) -> None:
    codes = sae.encode(x)
    assert (sae.d_in, sae.d_sae) == (D_IN, D_SAE)
    assert len(codes) == len(codes.values) == 64
    assert codes.values.shape == codes.indices.shape
    assert len(made_of(sae, x)) == len(x)


def test_codes_follow_from_pre_activations_where_it_says_so(
    sae: AbstractSAE, x: Float[Tensor, "n d_in"]
) -> None:
    if not isinstance(sae, SelectingByThese):  # pyrefly: ignore[unsafe-overlap]
        pytest.skip("its codes take more than pre-activations")
    codes, found = sae.encode(x), sae.codes_from(sae.pre_activations(x))
    assert torch.equal(found.values, codes.values)
    assert torch.equal(found.indices[found.active], codes.indices[codes.active])


def test_the_promised_l0_holds(sae: AbstractSAE, x: Float[Tensor, "n d_in"]) -> None:
    codes = sae.encode(x)
    sparsity = sae.config.sparsity
    assert sparsity.signed or not bool((codes.values < 0).any())
    assert (loss_of(sae, x, LossContext(1.0)).codes.offsets is not None) == sparsity.ragged
    if sparsity.per == "penalty":
        pytest.skip("learned, not imposed")
    if sparsity.k is None:
        pytest.skip("the data decide")
    assert sparsity.k == K
    if sparsity.per == "batch":
        assert codes.mean_l0() == K
    else:
        assert int(codes.active.sum(1).max()) <= K


def test_no_latent_is_active_twice_in_a_row(sae: AbstractSAE, x: Float[Tensor, "n d_in"]) -> None:
    for codes in (sae.encode(x), loss_of(sae, x, LossContext(1.0)).codes):
        places = (codes.rows() * D_SAE + codes.indices)[codes.active]
        assert len(places.unique()) == len(places)


def test_decode_equals_the_dense_product(sae: AbstractSAE, x: Float[Tensor, "n d_in"]) -> None:
    if sae.config.decoder_problem is not None:
        pytest.skip("reconstructs no activation")
    for codes in (sae.encode(x), loss_of(sae, x, LossContext(1.0)).codes):
        torch.testing.assert_close(sae.decode(codes), codes.dense() @ sae.W_dec + sae.b_dec)


def test_the_pass_returns_the_reconstruction_of_its_codes(
    sae: AbstractSAE, x: Float[Tensor, "n d_in"]
) -> None:
    if sae.config.decoder_problem is not None:
        pytest.skip("reconstructs no activation")
    done = sae.training_pass(ActivationBatch(x, grad=rows(seed=5)), LossContext(1.0))
    torch.testing.assert_close(done.x_hat, sae.decode(done.codes))


def test_a_training_pass_changes_nothing(sae: AbstractSAE, x: Float[Tensor, "n d_in"]) -> None:
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    loss_of(sae, x, LossContext(1.0))
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


def test_only_fired_latents_have_encoder_gradient(
    sae: AbstractSAE, x: Float[Tensor, "n d_in"]
) -> None:
    every = sae.config.decoder_problem is not None and sae.config.sparsity.per == "penalty"
    if every or sae.config.fitted_by is not None:
        pytest.skip("no gradient fits it, or one fits every latent")
    terms = loss_of(sae, x[:4], LossContext(1.0))
    terms.total.backward()
    assert (silent := terms.codes.firing_counts() == 0).any()
    assert not encoder_gradient(sae)[:, silent].any()
    assert encoder_gradient(sae)[:, ~silent].any(dim=0).all()


def test_aux_k_gradient_reaches_the_encoder_and_decoder_of_dead_latents(
    sae: AbstractSAE, x: Float[Tensor, "n d_in"]
) -> None:
    if not isinstance(sae.config, AuxKConfig):
        pytest.skip("has no AuxK")
    dead = loss_of(sae, x[:4], LossContext(1.0)).codes.firing_counts() == 0
    terms = loss_of(sae, x[:4], LossContext(1.0, dead))
    assert "aux_k" in terms.parts
    terms.total.backward()
    assert encoder_gradient(sae)[:, dead].any()
    assert gradient_of(sae.W_dec)[dead].any()


def test_aux_k_leaves_alone_what_fires_in_the_batch(
    sae: AbstractSAE, x: Float[Tensor, "n d_in"]
) -> None:
    if not isinstance(sae.config, AuxKConfig):
        pytest.skip("has no AuxK")
    silent = loss_of(sae, x, LossContext(1.0)).codes.firing_counts() == 0
    everything = torch.ones(D_SAE, dtype=torch.bool)
    totals = [loss_of(sae, x, LossContext(1.0, dead)).total for dead in (everything, silent)]
    assert torch.equal(*totals)


def test_decoder_gradient_is_tangent_and_rows_are_unit_after_a_step(
    sae: AbstractSAE, x: Float[Tensor, "n d_in"]
) -> None:
    if not sae.unit_atoms:
        pytest.skip("has free atoms")
    if sae.config.fitted_by is not None:
        train_step(sae, optimizer_of(sae, 0.1), x, LossContext(1.0))
    else:
        loss_of(sae, x, LossContext(1.0)).total.backward()
        sae.before_optimizer_step()
        radial = (gradient_of(sae.W_dec) * sae.W_dec).sum(1)
        torch.testing.assert_close(radial, torch.zeros(D_SAE), atol=1e-5, rtol=0)
        torch.optim.Adam(sae.parameters(), lr=0.1).step()
        sae.after_optimizer_step()
    assert float((sae.W_dec.detach().norm(dim=1) - 1).abs().max()) < 1e-5


def test_the_loss_falls(sae: AbstractSAE, x: Float[Tensor, "n d_in"]) -> None:
    optimizer, n = optimizer_of(sae, 1e-2), 100
    contexts = [LossContext(float(D_IN), step=step, n_steps=n) for step in range(n)]
    losses = [train_step(sae, optimizer, x, context) for context in contexts]
    # An annealed posterior is held back until most steps are done.
    assert losses[-1] < (0.6 if sae.config.fitted_by is None else 0.9) * losses[0]


@pytest.mark.unchecked
def test_a_planted_dictionary_is_recovered(
    sae: AbstractSAE, request: pytest.FixtureRequest
) -> None:
    """Rows made of two of sixteen unit atoms: training finds each atom (up to sign)."""
    if sae.config.decoder_problem is not None:
        pytest.skip("reconstructs no activation")
    generator = torch.Generator().manual_seed(3)
    steps = 500 if sae.config.fitted_by is None else 100
    atoms = torch.nn.functional.normalize(torch.randn(16, D_IN, generator=generator), dim=1)
    changes = {"k": 2} if sae.config.sparsity.k is not None else {}
    changes |= request.module.PLANTED.get(sae.config.variant, {})
    small = config_of(sae.config.model_dump(), d_sae=32, **changes).build(D_IN, generator)
    optimizer = optimizer_of(small, 1e-2)
    for step in range(steps):
        which = torch.rand(128, 16, generator=generator).topk(2).indices
        size = 1 + torch.rand(128, 2, generator=generator)
        x = (atoms[which] * size[:, :, None]).sum(1)
        train_step(small, optimizer, x, LossContext(5.0, step=step, n_steps=steps))
    found = torch.nn.functional.normalize(small.W_dec.detach(), dim=1)
    cosine = (atoms @ found.T).abs().max(dim=1).values
    assert float(cosine.median()) > 0.85


def test_saving_and_loading_is_the_identity(
    sae: AbstractSAE, x: Float[Tensor, "n d_in"], tmp_path: Path
) -> None:
    save_sae(sae, tmp_path / "sae.safetensors")
    loaded = load_sae(tmp_path / "sae.safetensors")
    assert loaded.config == sae.config
    assert torch.equal(made_of(loaded, x), made_of(sae, x))


def test_configuration_survives_json(sae: AbstractSAE) -> None:
    check_variant(sae.config)
    assert SAE_CONFIG.validate_python(json.loads(sae.config.model_dump_json())) == sae.config


def test_equal_seeds_give_equal_weights(sae: AbstractSAE) -> None:
    built = [sae.config.build(D_IN, torch.Generator().manual_seed(0)) for _ in range(2)]
    for one, other in zip(*(each.parameters() for each in built), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(3, D_IN + 1), (2, 3, D_IN), (0, D_IN), (D_IN,)])
def test_other_shapes_are_refused_with_both_shapes(
    sae: AbstractSAE, shape: tuple[int, ...]
) -> None:
    with pytest.raises(Exception, match=str(D_IN)):
        sae.encode(torch.zeros(shape))


def test_a_rows_codes_do_not_depend_on_its_neighbours(
    sae: AbstractSAE, x: Float[Tensor, "n d_in"]
) -> None:
    torch.testing.assert_close(made_of(sae, x[:1]), made_of(sae, x)[:1])


def test_nan_is_refused(sae: AbstractSAE, x: Float[Tensor, "n d_in"]) -> None:
    with pytest.raises(UsageError, match="NaN"):
        sae.encode(x.index_fill(0, torch.tensor([3]), float("nan")))


def test_k_above_the_width_is_refused_with_the_remedy(sae: AbstractSAE) -> None:
    if sae.config.sparsity.k is None:
        pytest.skip("has no k")
    with pytest.raises(UsageError, match="k=41 exceeds d_sae=40; lower --k"):
        config_of(sae.config.model_dump(), k=41).build(D_IN)


@pytest.mark.parametrize("scale", [0.125, 8.0])
def test_rescaling_moves_every_parameter_together(
    sae: AbstractSAE, x: Float[Tensor, "n d_in"], scale: float
) -> None:
    """An SAE of scale * x becomes one of x: values and error over scale, or as before if of u."""
    unit = 1.0 if sae.config.decoder_problem is not None else scale
    codes, before = sae.encode(x), made_of(sae, x)
    sae.rescale(scale)
    again = sae.encode(x / scale)
    assert torch.equal(again.indices[again.active], codes.indices[codes.active])
    torch.testing.assert_close(again.values * unit, codes.values)
    torch.testing.assert_close(made_of(sae, x / scale) * unit, before)


def test_its_affine_form_gives_its_codes(sae: AbstractSAE, x: Float[Tensor, "n d_in"]) -> None:
    if sae.affine_encoder() is None and type(sae).linear_codes is AbstractSAE.linear_codes:
        pytest.skip("has none")
    found = linearize(sae, x)
    dense = torch.zeros(len(x), D_SAE).index_put((found.row, found.latent), found.values)
    torch.testing.assert_close(dense, sae.encode(x).dense(), atol=1e-5, rtol=1e-4)


def test_what_other_tools_read_has_its_codes(sae: AbstractSAE, x: Float[Tensor, "n d_in"]) -> None:
    if sae.foreign_rule() is None:
        pytest.skip("they have none such")
    foreign = to_foreign(sae)
    torch.testing.assert_close(foreign.encode_dense(x), sae.encode(x).dense())
    torch.testing.assert_close(foreign.reconstruct(x), sae.reconstruct(x))


def test_it_has_its_own_step_or_a_gradient_fits_it(sae: AbstractSAE) -> None:
    assert (sae.own_step() is None) == (sae.config.fitted_by is None)


def test_without_a_fused_rule_it_says_why_as_half_a_sentence(sae: AbstractSAE) -> None:
    rule = sae.fused_rule()
    assert not isinstance(rule, str) or (rule.strip() and not rule.endswith("."))

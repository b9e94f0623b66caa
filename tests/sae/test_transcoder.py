"""Transcoders: every variant's rules with a decoder, and perhaps a skip connection, elsewhere."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open

from saelab.config import UsageError
from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.sae.dictionary import geometric_median
from saelab.sae.hierarchical_topk import HierarchicalTopK
from saelab.sae.interop.convert import save_sae_lens
from saelab.sae.linear import linearize
from saelab.sae.losses import local_loss
from saelab.sae.matryoshka import Matryoshka
from saelab.sae.storage import load_sae, save_sae
from saelab.sae.transcoder import make_transcoder, start_transcoder
from saelab.sae.variants import SAE_CONFIG, sized
from saelab.types import ActivationBatch

D_IN, D_OUT, D_SAE = 12, 9, 40
FORMS = [
    {"variant": "topk"},
    {"variant": "topk", "multi_k_coefficient": 0.125},
    {"variant": "batch-topk"},
    {"variant": "abs-topk"},
    {"variant": "abs-topk", "selection": "batch"},
    {"variant": "matryoshka"},
    {"variant": "hierarchical-topk"},
    {"variant": "gradient-topk"},
    {"variant": "jumprelu"},
    {"variant": "standard"},
    {"variant": "gated"},
]


def pairs(n=64, seed=1):
    """Inputs and targets, neither of them centred."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D_IN, generator=generator) + 0.7
    return x, (x @ torch.randn(D_IN, D_OUT, generator=generator)).relu() / 3 + 0.2


def built(form, *, skip: bool) -> AbstractSAE:
    """A started transcoder in which no parameter is left at zero."""
    generator = torch.Generator().manual_seed(0)
    options = sized(form["variant"], D_SAE, 4).model_dump()
    sae = SAE_CONFIG.validate_python(options | form).build(D_IN, generator)
    make_transcoder(sae, D_OUT, skip=skip, generator=generator)
    x, y = pairs()
    start_transcoder(sae, x, y)
    sae.initialise(x)
    with torch.no_grad():
        for name in ("b_enc", "b_gate", "b_mag"):
            if name in dict(sae.named_parameters()):
                sae.get_parameter(name).add_(0.1 * torch.randn(D_SAE, generator=generator))
        if sae.W_skip is not None:
            sae.W_skip.copy_(0.2 * torch.randn(D_IN, D_OUT, generator=generator))
    sae.calibrate(x)
    return sae


def batch(n=64, seed=1) -> ActivationBatch:
    x, y = pairs(n, seed)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
    return ActivationBatch(x, target=y, grad=grad)


@pytest.fixture(params=FORMS, ids=lambda form: "-".join(map(str, form.values())))
def form(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["plain", "skip"])
def sae(form, request) -> AbstractSAE:
    return built(form, skip=request.param)


def by_hand(sae: AbstractSAE, x, z):
    """The formula, with every latent written out."""
    linear = 0 if sae.W_skip is None else (x - sae.b_in) @ sae.W_skip
    return z @ sae.W_dec + linear + sae.b_dec


def test_it_reads_one_width_and_writes_another(sae):
    x, _ = pairs()
    assert (sae.d_in, sae.d_out, sae.d_sae) == (D_IN, D_OUT, D_SAE)
    codes = sae.encode(x)
    torch.testing.assert_close(sae.decode(codes, x), by_hand(sae, x, codes.dense()))
    assert torch.equal(sae.reconstruct(x), sae.decode(codes, x))


def test_the_input_is_centred_by_its_own_bias(sae):
    x, y = pairs()
    with torch.no_grad():
        sae.b_dec.add_(100)
        before = sae.encode(x).dense()
        sae.b_dec.sub_(100)
    assert torch.equal(before, sae.encode(x).dense())
    torch.testing.assert_close(sae.b_in, geometric_median(x))
    torch.testing.assert_close(sae.b_dec, y.mean(dim=0))


def test_the_error_is_that_of_the_target(sae):
    given = batch()
    done = sae.training_pass(given, LossContext(1.0))
    terms = local_loss(sae, given, LossContext(2.0))
    x_hat = by_hand(sae, given.x, done.codes.dense())
    torch.testing.assert_close(done.x_hat, x_hat)
    mse = (given.target - x_hat).pow(2).sum(-1).mean()
    torch.testing.assert_close(terms.mse_sum, mse.detach())
    if sae.config.variant not in ("matryoshka", "hierarchical-topk"):
        torch.testing.assert_close(done.error, mse)


def test_gradients_are_those_of_the_plain_formula_in_float64(sae):
    """Differentiated by torch from the same choice of latents, all terms written out densely."""
    sae = sae.double()
    if sae.config.sparsity.per == "penalty":
        pytest.skip("has a penalty, tested with the variant")
    single = batch()
    given = ActivationBatch(*(t.double() for t in (single.x, single.target, single.grad)))
    parameters = dict(sae.named_parameters())
    terms = local_loss(sae, given, LossContext(3.0, step=1, n_steps=2))
    found = torch.autograd.grad(terms.total, list(parameters.values()), allow_unused=True)
    chosen = terms.codes.dense() != 0
    a = (given.x - sae.b_in) @ sae.get_parameter("W_enc") + sae.get_parameter("b_enc")
    z = a * chosen
    errors = [by_hand(sae, given.x, part) - given.target for part in nested(sae, z)]
    loss = torch.stack([e.pow(2).sum(-1).mean() for e in errors]).mean() / 3.0
    if weight := getattr(sae.config, "multi_k_coefficient", 0.0):
        more = a.topk(16, dim=1).values[:, -1:]
        wide = by_hand(sae, given.x, (a * (a >= more)).relu())
        loss = loss + weight * (wide - given.target).pow(2).sum(-1).mean() / 3.0
    expected = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for name, mine, other in zip(parameters, found, expected, strict=True):
        assert mine is not None, name
        # Selected values are float32 by design.
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=2e-6, msg=lambda m, n=name: n + m)


def nested(sae: AbstractSAE, z):
    """The codes whose errors a variant averages: prefixes, budgets, or just the codes."""
    if isinstance(sae, Matryoshka):
        column = torch.arange(D_SAE)
        return [z * (column < end) for _, end in pairwise((0, *sae.prefixes(LossContext(1.0))))]
    if isinstance(sae, HierarchicalTopK):
        rank = z.argsort(dim=1, descending=True).argsort(dim=1)
        return [z * (rank < budget) for budget in range(1, 5)]
    return [z]


def test_dead_latents_learn_the_targets_residual(sae):
    if not hasattr(sae.config, "aux_k"):
        pytest.skip("has no AuxK")
    given = batch(4)
    dead = local_loss(sae, given, LossContext(1.0)).codes.firing_counts() == 0
    terms = local_loss(sae, given, LossContext(1.0, dead))
    residual = (given.target - sae.training_pass(given, LossContext(1.0)).x_hat).detach()
    a = (given.x - sae.b_in) @ sae.get_parameter("W_enc") + sae.get_parameter("b_enc")
    n = sae.config.n_aux(D_OUT)
    assert n == 4
    size = (a.abs() if "abs" in sae.config.variant else a).masked_fill(~dead, -torch.inf)
    kept = torch.zeros_like(a).scatter(1, size.topk(n, dim=1).indices, 1.0)
    z = a * kept if "abs" in sae.config.variant else (a * kept).relu()
    missed = (z @ sae.W_dec - residual).pow(2).sum()
    expected = missed / (residual - residual.mean(0)).pow(2).sum()
    torch.testing.assert_close(terms.parts["aux_k"], expected.detach())


@pytest.mark.parametrize(("scale", "target_scale"), [(8.0, 0.25), (0.125, 2.0)])
def test_both_scales_fold_exactly(sae, scale, target_scale):
    """Of scale * x to target_scale * y becomes of x to y; powers of two, so to the bit."""
    x, _ = pairs()
    codes, written = sae.encode(x), sae.reconstruct(x)
    sae.rescale(scale, target_scale)
    again = sae.encode(x / scale)
    assert torch.equal(again.indices[again.active], codes.indices[codes.active])
    assert torch.equal(again.dense() * target_scale, codes.dense())
    assert torch.equal(sae.reconstruct(x / scale) * target_scale, written)
    sae.rescale(1 / scale, 1 / target_scale)
    assert torch.equal(sae.reconstruct(x), written)


def test_the_skip_connection_is_a_dense_linear_map_beside_the_latents(form):
    x, _ = pairs()
    sae = built(form, skip=True)
    whole, codes = sae.reconstruct(x), sae.encode(x)
    skip = sae.W_skip
    assert skip is not None
    linear = (x - sae.input_bias) @ skip
    with torch.no_grad():
        skip.zero_()
    assert torch.equal(sae.encode(x).dense(), codes.dense())
    torch.testing.assert_close(whole - sae.reconstruct(x), linear, atol=1e-5, rtol=1e-5)


def test_a_skip_connection_that_lacks_its_rows_is_refused():
    x, _ = pairs()
    sae = built({"variant": "topk"}, skip=True)
    with pytest.raises(UsageError, match=r"skip connection; decode\(codes, x\) needs the rows"):
        sae.decode(sae.encode(x))


def test_saving_and_loading_is_the_identity_and_the_header_says_what_it_is(sae, tmp_path):
    path, (x, _) = tmp_path / "sae.safetensors", pairs()
    save_sae(sae, path)
    loaded = load_sae(path)
    assert torch.equal(loaded.reconstruct(x), sae.reconstruct(x))
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert (header["d_in"], header["d_out"]) == (str(D_IN), str(D_OUT))
    assert header["skip"] == str(sae.W_skip is not None)
    assert json.loads(header["config"])["variant"] == sae.config.variant


def test_active_latents_are_affine_in_what_is_read(sae):
    sae = sae.double()
    x = pairs()[0].double()
    found = linearize(sae, x)
    dense = torch.zeros(len(x), D_SAE, dtype=x.dtype)
    dense[found.row, found.latent] = found.values
    torch.testing.assert_close(dense, sae.encode(x).dense().double(), atol=1e-5, rtol=0)
    assert found.encoder.shape == (len(found), D_IN)


@pytest.mark.parametrize(
    ("variant", "reason"),
    [("k-sparse", "decoder's rows encode too"), ("matching-pursuit", "subtracts decoder rows")],
)
def test_variants_that_encode_by_their_decoder_are_refused(variant, reason):
    sae = SAE_CONFIG.validate_python({"variant": variant, "d_sae": 40, "k": 4}).build(D_IN)
    with pytest.raises(UsageError, match=f"A {variant} SAE cannot have another .*{reason}"):
        make_transcoder(sae, D_OUT)


def test_a_transcoder_that_selects_by_k_is_not_exported(tmp_path):
    with pytest.raises(UsageError, match="no transcoder that selects its latents by k"):
        save_sae_lens(built({"variant": "topk"}, skip=False), tmp_path / "lens")
    assert not (tmp_path / "lens").exists()

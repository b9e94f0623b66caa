"""An SAE's decoder with other encoders: what they encode, and that nothing is copied."""

import pytest
import torch
from torch.nn import functional as F
from typing_extensions import override

from saelab.config import UsageError
from saelab.pursuit.encoders import ENCODERS
from saelab.sae.abs_topk import AbsTopKConfig
from saelab.sae.batch_topk import BatchTopKConfig
from saelab.sae.topk import TopKConfig
from saelab.sae.transcoder import make_transcoder
from saelab.sae.with_encoder import with_encoder

D_IN, D_SAE, K = 16, 40, 4


@pytest.fixture
def x():
    return torch.randn(200, D_IN, generator=torch.Generator().manual_seed(0)) + 1


def built(config, **changes):
    g = torch.Generator().manual_seed(1)
    sae = config(d_sae=D_SAE, k=K, **changes).build(D_IN, g)
    with torch.no_grad():
        sae.b_dec.copy_(torch.randn(D_IN, generator=g))
    return sae.eval().requires_grad_(requires_grad=False)


def error(sae, x, target=None):
    wanted = x if target is None else target
    return (sae.decode(sae.encode_for(x, target), x) - wanted).square().sum(1)


@pytest.mark.parametrize("config", [TopKConfig, AbsTopKConfig])
def test_a_pursuit_has_a_lower_error_at_the_l0_of_the_sae(config, x):
    sae = built(config)
    encoded = with_encoder(sae, "omp", x)
    own, codes = sae.encode(x), encoded.encode(x)
    assert codes.mean_l0() == own.mean_l0()
    assert error(encoded, x).sum() < error(sae, x).sum()
    assert bool((codes.values < 0).any()) == (config is AbsTopKConfig)


@pytest.mark.parametrize("name", ["omp", "mp"])
def test_a_row_gets_as_many_latents_as_the_sae_gives_it(name, x):
    sae = built(BatchTopKConfig)
    sae.calibrate(x)
    counts = sae.encode(x).rectangular().active.sum(1)
    assert counts.unique().numel() > 3
    found = with_encoder(sae, name, x).encode(x).rectangular().active.sum(1)
    assert (found <= counts).all()
    assert (found == counts).float().mean() > 0.9
    asked = with_encoder(sae, name, x, l0=2.2).encode(x)
    assert asked.mean_l0() == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_length_of_atoms_does_not_matter(name, x):
    sae, longer = built(TopKConfig), built(TopKConfig)
    # Powers of two: others round, and a rounding decides whether a nearly useless latent is taken.
    factor = 2.0 ** (torch.arange(D_SAE) % 5 - 2)
    longer.W_dec.mul_(factor[:, None])
    plain, scaled = (with_encoder(one, name, x, l0=3.0).encode(x) for one in (sae, longer))
    torch.testing.assert_close(
        scaled.dense() * factor, plain.dense(), atol=2e-2 if "mp" not in name else 1e-4, rtol=1e-2
    )


def test_what_a_transcoder_should_write_is_encoded_less_its_skip_connection(x):
    sae = make_transcoder(built(TopKConfig), 6, skip=True).requires_grad_(requires_grad=False)
    g = torch.Generator().manual_seed(2)
    for tensor in (sae.b_in, sae.b_dec, sae.W_skip):
        assert tensor is not None
        tensor.copy_(torch.randn(tensor.shape, generator=g))
    z = torch.zeros(len(x), D_SAE)
    z[:, 3], z[:, 7] = 1.0, 2.0
    target = z @ sae.W_dec + sae.b_dec + (x - sae.b_in) @ sae.W_skip
    encoded = with_encoder(sae, "omp", x, target, l0=6)
    assert error(encoded, x, target).max() < 1e-6
    with pytest.raises(UsageError, match="omp encodes what a transcoder reconstructs"):
        encoded.encode(x)
    with pytest.raises(UsageError, match="The SAE is a transcoder; give the rows"):
        with_encoder(sae, "omp", x)


def test_weights_are_shared_and_an_atom_of_zeros_is_never_active(x):
    sae = built(TopKConfig)
    sae.W_dec[5] = 0
    encoded = with_encoder(sae, "omp", x, l0=8)
    assert encoded.W_dec.data_ptr() == sae.W_dec.data_ptr()
    codes = encoded.encode(x)
    assert codes.firing_counts()[5] == 0
    atoms = sae.W_dec[torch.arange(D_SAE) != 5]
    chosen = codes.dense()[:, torch.arange(D_SAE) != 5]
    assert (F.normalize(atoms, dim=1) @ (x - sae.b_dec - chosen @ atoms).T).T[
        chosen != 0
    ].abs().max() < 1e-4


def test_latents_that_the_sae_rarely_chooses_are_dear(x):
    sae = built(TopKConfig)
    own = sae.encode(x).firing_counts()
    common = own > own.median()
    plain, priced = (
        with_encoder(sae, "omp-l0", x, weights=weights).encode(x).firing_counts()
        for weights in ("none", "firing")
    )
    assert priced[common].sum() / priced.sum() > plain[common].sum() / plain.sum()


def test_what_cannot_be_encoded_is_said(x):
    sae = built(TopKConfig)
    with pytest.raises(UsageError, match="no transcoder; leave out the rows"):
        with_encoder(sae, "omp", x, x)
    with pytest.raises(UsageError, match="is not trained"):
        with_encoder(sae, "omp", x).rescale(2.0)
    sae.b_enc.fill_(-1e6)
    with pytest.raises(UsageError, match="no active latent on these rows; give an L0"):
        with_encoder(sae, "omp", x)

    class Squared(type(sae)):  # pyrefly: ignore[invalid-inheritance]
        @override
        def decode(self, codes, x=None):  # pyrefly: ignore[bad-override]
            return super().decode(codes, x).square()

    sae.__class__ = Squared
    with pytest.raises(UsageError, match="A topk SAE has no other encoder: it is not decoded by"):
        with_encoder(sae, "omp", x, l0=2)

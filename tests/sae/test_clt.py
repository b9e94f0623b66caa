"""Cross-layer transcoder: against dense sums in float64, layer by layer."""

import pytest
import torch

from saelab.config import UsageError
from saelab.sae.clt import CLT, CLTConfig
from saelab.sae.context import LossContext
from saelab.sae.storage import load_sae, save_sae
from saelab.sae.transcoder import make_transcoder, start_transcoder
from saelab.types import ActivationBatch, SparseCodes

N, D, PER_LAYER, ROWS = 3, 5, 8, 40
KINDS = [
    (selection, decoders)
    for selection in ("batch-topk", "topk", "jumprelu")
    for decoders in ("free", "tied-source", "tied-target")
]


def rows(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, N * D, generator=generator)


def clt(selection="batch-topk", decoders="free", **changes) -> CLT:
    options = {"d_sae": N * PER_LAYER, "k": 6, "aux_coefficient": 0, "widths": (D,) * N}
    options |= {"selection": selection, "decoders": decoders} | changes
    config = CLTConfig.model_validate(options)
    sae = config.build(N * D, torch.Generator().manual_seed(0))
    make_transcoder(sae, N * D, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (sae.b_in, sae.b_enc, sae.b_dec):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        if not sae.tied:
            noise = 0.3 * torch.randn(sae.W_dec.shape, generator=generator)
            blocks = noise.view(N, PER_LAYER, N, D) * torch.ones(N, N).triu()[:, None, :, None]
            sae.W_dec.add_(blocks.view_as(sae.W_dec))
    return sae


def dense(sae, x, mask):
    """Values of all latents where `mask`, and the reconstruction, by loops over layers."""
    weights = {name: p.detach().double().requires_grad_() for name, p in sae.named_parameters()}
    z, y = [], []
    for layer in range(N):
        here, own = slice(layer * D, layer * D + D), slice(layer * PER_LAYER, None)
        columns = weights["W_enc"][:, own][:, :PER_LAYER]
        a = (x.double()[:, here] - weights["b_in"][here]) @ columns
        a = a + weights["b_enc"][own][:PER_LAYER]
        z.append(a.relu() * mask[:, own][:, :PER_LAYER])
        z[-1].retain_grad()
        written = weights["b_dec"][here]
        for source in range(layer + 1):
            first = (layer if sae.decoders == "tied-target" else source) * PER_LAYER
            atoms = weights["W_dec"][first : first + PER_LAYER]
            written = written + z[source] @ (atoms if sae.tied else atoms[:, here])
        y.append(written)
    return z, torch.cat(y, 1), weights


@pytest.mark.parametrize(("selection", "decoders"), KINDS)
def test_codes_reconstruction_and_gradients_are_those_of_dense_sums(selection, decoders):
    sae, x, target = clt(selection, decoders), rows(3), rows(4)
    done = sae.training_pass(ActivationBatch(x, target), LossContext(1.0))
    mask = done.codes.dense() != 0
    z, y, weights = dense(sae, x, mask)
    torch.testing.assert_close(done.codes.dense().double(), torch.cat(z, 1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(done.activations.double(), y, atol=1e-5, rtol=1e-4)
    done.error.backward()
    (target.double() - y).pow(2).sum(-1).mean().backward()
    sae.before_optimizer_step()
    for name, parameter in sae.named_parameters():
        wanted = weights[name].grad
        if name == "threshold":
            # 2407.14435, eq. 11: -theta / width times the code's gradient, inside the window.
            near = (sae.pre_activations(x) - parameter).abs() < sae.bandwidth / 2
            rate = (torch.cat([part.grad for part in z], 1) * near).sum(0)
            wanted = -parameter.double() / sae.bandwidth * rate
        if name == "W_dec":
            atoms = parameter.detach().double()
            wanted = wanted - (wanted * atoms).sum(1, keepdim=True) * atoms
        torch.testing.assert_close(parameter.grad.double(), wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("decoders", ["free", "tied-source", "tied-target"])
def test_a_latent_writes_to_its_own_layer_and_later_ones_only(decoders):
    sae = clt(decoders=decoders)
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sae.training_pass(ActivationBatch(rows(3), rows(4)), LossContext(1.0)).error.backward()
        sae.before_optimizer_step()
        optimizer.step()
        sae.after_optimizer_step()
    for layer in range(N):
        code = torch.tensor([[layer * PER_LAYER + 1]])
        made = sae.written(SparseCodes(torch.ones(1, 1), code, sae.d_sae)).view(N, D)
        assert not made[:layer].any()
        assert made[layer:].any(1).all()


def test_the_largest_of_the_batch_or_of_each_layer_are_kept():
    codes = (
        clt("batch-topk").training_pass(ActivationBatch(rows(3), rows(4)), LossContext(1.0)).codes
    )
    assert codes.mean_l0() == 6
    sae = clt("topk")
    layer = sae.layer_of(sae.encode(rows(3)).indices)
    assert torch.equal(layer.sort(1).values, torch.tensor([0, 0, 1, 1, 2, 2]).expand(ROWS, -1))


def test_jumprelu_starts_at_the_target_and_its_penalty_is_of_l0():
    sae, x = clt("jumprelu"), rows(3)
    sae.initialise(x)
    assert sae.encode(x).mean_l0() == pytest.approx(6, abs=0.5)
    context = LossContext(1.0, step=1, n_steps=2)
    done = sae.training_pass(ActivationBatch(x, rows(4)), context)
    weight, penalty = done.parts["l0_penalty"]
    assert weight == 10
    assert penalty.item() == pytest.approx((done.codes.mean_l0() / 6 - 1) ** 2, abs=1e-6)
    penalty.backward()
    assert sae.threshold.grad is not None
    with pytest.raises(UsageError, match="l0_coefficient=3 is for selection jumprelu"):
        clt("topk", l0_coefficient=3.0)


def test_it_starts_at_the_best_linear_map_of_each_layer_and_is_loaded_as_saved(tmp_path):
    sae, x = clt(), rows(3)
    rotation = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(9)))[0]
    start_transcoder(sae, x, (x.view(ROWS, N, D) @ rotation).flatten(1))
    for block in sae.blocks(x, x):
        cosine = torch.cosine_similarity(rotation @ block.atoms.T, block.columns, dim=0)
        assert float(cosine.detach().min()) > 0.99
    sae.calibrate(x)
    save_sae(sae, tmp_path / "sae.safetensors")
    loaded = load_sae(tmp_path / "sae.safetensors")
    assert torch.equal(loaded.reconstruct(x), sae.reconstruct(x))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"d_sae": 25}, "d_sae=25 is shared by 3 layers"),
        ({"selection": "topk", "k": 4}, "k=4 is shared by 3 layers"),
        ({"widths": (5, 5, 4)}, "must be equal"),
        ({"widths": (5, 5)}, "do not sum"),
    ],
)
def test_layers_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        clt(**changes)

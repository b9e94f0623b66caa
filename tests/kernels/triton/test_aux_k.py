"""AuxK by kernels against the dense definition, under the interpreter."""

import pytest
import torch
from kernels.triton_device import DEVICE
from typing_extensions import override

from saelab.kernels.exchange import LatentExchange
from saelab.kernels.triton.select import keep
from saelab.kernels.triton.step import aux_k
from saelab.kernels.triton.step.aux_k import AuxRules, AuxStep
from saelab.kernels.triton.weights import Weights
from saelab.shard import LatentShard

N = 22
KINDS = [
    torch.randn(1, N, generator=torch.Generator().manual_seed(0)),
    torch.ones(1, N),
    torch.randn(2, N, generator=torch.Generator().manual_seed(1)).round(),
    -torch.rand(1, N, generator=torch.Generator().manual_seed(2)),
    torch.tensor([[float("inf"), -float("inf"), 0.0, -0.0, 1e-40, 1.0] * 4])[:, :N],
    torch.logspace(-30, 30, N)[None],
]
"""Random, all equal, with ties, all negative, infinite and subnormal, of very unequal sizes."""


@pytest.mark.parametrize(
    ("dtype", "signed", "n_valid", "k", "words"),
    [
        (torch.bfloat16, False, N, 4, 16),
        (torch.bfloat16, True, 9, 4, 16),
        (torch.bfloat16, False, 3, 4, 16),
        (torch.bfloat16, False, 0, 4, 16),
        (torch.bfloat16, False, N - 1, N - 2, 4),
        (torch.bfloat16, True, N, 4, 4),
        (torch.float32, False, N, 4, 32),
        (torch.float32, True, 9, 4, 8),
    ],
)
def test_the_top_k_of_the_valid_entries_are_kept_the_first_of_equal_ones(
    dtype, signed, n_valid, k, words, monkeypatch
):
    """Of rows in the registers, and of rows that are read in chunks; in place, and by column."""
    monkeypatch.setattr(keep, "WORDS", words)
    x = torch.cat(KINDS).to(DEVICE, dtype)
    size = x[:, :n_valid].abs() if signed else x[:, :n_valid]
    order = size.float().sort(dim=1, descending=True, stable=True).indices[:, :k]
    chosen = torch.zeros_like(x, dtype=torch.bool).scatter(1, order, True)
    expected = torch.where(chosen, x if signed else x.relu(), 0.0)
    n = torch.tensor(n_valid, dtype=torch.int32, device=DEVICE)
    columns = torch.arange(N, dtype=torch.int32, device=DEVICE) * 3 + 1
    whole = torch.ones_like(x).repeat(1, 3)
    whole[:, columns.long()] = x
    read = torch.empty_like(x)
    keep.keep_top_k_(read, n, k, signed=signed, columns=(whole, columns))
    assert torch.equal(read, expected)
    keep.keep_top_k_(x, n, k, signed=signed)
    assert torch.equal(x, expected)


D_IN, D_SAE, BATCH = 6, 9, 5


class OneOfOne(LatentExchange):
    """That of a process which holds all latents, and asks the others nevertheless."""

    def __init__(self):
        super().__init__(LatentShard(0, 1, D_SAE))

    @override
    def sum(self, part):
        return part

    @override
    def gather(self, own):
        return own[None]


def started(capacity, *, signed, exchange=None, k=2, silent=(1, 4, 5, 8)):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(D_SAE, D_IN, generator=generator).to(DEVICE)
    W_enc = torch.randn(D_IN, D_SAE, generator=generator).to(DEVICE)
    b_enc, b_dec = (torch.randn(n, generator=generator).to(DEVICE) / 5 for n in (D_SAE, D_IN))
    weights = Weights.start(W_enc, b_enc, W, b_dec, torch.float32)
    weights.since_fired[list(silent)] = 100
    exchange = LatentExchange() if exchange is None else exchange
    return weights, AuxStep(weights, AuxRules(k, 0.5, 100), capacity, exchange, signed=signed)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("capacity", "read_at", "exchange"),
    [(4, 30, None), (9, 30, None), (9, 0, None), (9, 0, OneOfOne())],
)
def test_gradients_are_those_of_the_dead_latents_loss(
    capacity, read_at, exchange, signed, monkeypatch
):
    """Latent 4 fires in this batch, and 5 was selected with the value zero.

    From 0 on, the pre-activations are read from those of all latents.
    """
    monkeypatch.setattr(aux_k, "READ_AT", {4: read_at})
    weights, aux = started(capacity, signed=signed, exchange=exchange)
    generator = torch.Generator().manual_seed(1)
    x, residual = (torch.randn(BATCH, D_IN, generator=generator).to(DEVICE) for _ in range(2))
    values = torch.tensor([[1.0, 0.0]] * BATCH, device=DEVICE)
    indices = torch.tensor([[4, 5]] * BATCH, dtype=torch.int32, device=DEVICE)
    variance = (residual - residual.mean(0)).square().sum()
    pre_acts = x @ weights.enc.value.T + weights.b_enc.value
    for _ in range(2):  # What fired in a step does not count in the next one.
        z, n_dead = aux.choose((values, indices), x, pre_acts)
        aux.measure(aux.run(z, residual, x), n_dead, variance)
        values, indices = values.roll(1, 1), indices.roll(1, 1)
        assert int(n_dead) == 3

    dead = torch.tensor([1, 5, 8], device=DEVICE)
    atoms = (weights.scale[:, None] * weights.dec.value)[dead].requires_grad_()
    rows, bias = (p.value[dead].clone().requires_grad_() for p in (weights.enc, weights.b_enc))
    a = x @ rows.T + bias
    chosen = (a.abs() if signed else a).topk(2, dim=1).indices
    z = torch.zeros_like(a).scatter(1, chosen, a.gather(1, chosen))
    z = z if signed else z.relu()
    loss = (z @ atoms + residual).square().sum() / variance
    (0.5 * loss).backward()
    torch.testing.assert_close(aux.loss, loss.detach())
    expected = torch.full((D_SAE,), -1, dtype=torch.int32, device=DEVICE)
    expected[dead] = torch.arange(3, dtype=torch.int32, device=DEVICE)
    assert torch.equal(aux.dead.slots, expected)
    to_dec, to_enc, scalars = (t[:3] * aux.slope for t in (aux.to_dec, aux.to_enc, aux.scalars))
    torch.testing.assert_close(to_dec, atoms.grad)
    torch.testing.assert_close(to_enc, rows.grad)
    torch.testing.assert_close(scalars[:, 0], bias.grad)
    torch.testing.assert_close(scalars[:, 1], (atoms.grad * atoms.detach()).sum(1))


def test_without_a_dead_latent_nothing_is_added():
    _, aux = started(4, signed=False, silent=())
    x = torch.ones(BATCH, D_IN, device=DEVICE)
    codes = torch.ones(BATCH, 1, device=DEVICE), torch.zeros(BATCH, 1, device=DEVICE).int()
    z, n_dead = aux.choose(codes, x, torch.ones(BATCH, D_SAE, device=DEVICE))
    aux.measure(aux.run(z, x, x), n_dead, torch.tensor(0.0, device=DEVICE))
    assert (aux.dead.slots == -1).all()
    assert not aux.to_dec.any()
    assert not aux.to_enc.any()
    assert float(aux.loss) == 0

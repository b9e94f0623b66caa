"""Transport operators: the bound, what attains it, and what a copy or noise gives."""

import pytest
import torch

from saelab.analysis.transport.operators import (
    Canonical,
    Transport,
    best_transport,
    fit_transport,
    latent_transport,
    transport_efficiency,
)
from saelab.config import UsageError

N, D = 400, 7
RANKS = tuple(range(1, D + 1))


def normal(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture(params=range(3))
def pair(request):
    """Rows of unequal variance and a mean, mapped with noise."""
    x = normal(request.param, N, D) * torch.linspace(0.2, 3, D) + 1.5
    return x, x @ normal(10 + request.param, D, D) + 1.5 * normal(20 + request.param, N, D) - 2


def test_no_map_exceeds_the_ceiling_of_its_rank(pair):
    # P4.1, for least squares, ridge, the identity and a random map.
    x, y = pair
    maps = [fit_transport(x, y), fit_transport(x, y, ridge=50.0)]
    maps += [
        Transport(T, torch.zeros(D).double()) for T in (torch.eye(D).double(), normal(5, D, D))
    ]
    for transport in maps:
        for found in transport_efficiency(x, y, transport, RANKS):
            assert found.r2 <= found.ceiling + 1e-12
            assert found.efficiency <= 1 + 1e-12


def test_the_best_map_of_a_rank_attains_it(pair):
    # P4.2
    x, y = pair
    for rank in RANKS:
        best = best_transport(x, y, rank)
        assert int(torch.linalg.matrix_rank(best.T)) == rank
        (found,) = transport_efficiency(x, y, best, [rank])
        assert found.r2 == pytest.approx(found.ceiling, abs=1e-10)


def test_least_squares_attains_it_at_full_rank_and_cut_short_need_not(pair):
    # P4.3
    x, y = pair
    found = transport_efficiency(x, y, fit_transport(x, y), RANKS)
    assert found[-1].r2 == pytest.approx(found[-1].ceiling, abs=1e-10)
    assert min(one.efficiency for one in found) < 0.99


def test_the_ceiling_grows_with_rank_and_ignores_the_coordinates(pair):
    # P4.4
    x, y = pair
    plain, turned = Canonical.of(x, y), Canonical.of(x @ normal(7, D, D), y @ normal(8, D, D) + 3)
    ceilings = [plain.ceiling(rank) for rank in RANKS]
    assert ceilings == sorted(ceilings)
    assert ceilings[-1] <= 1
    torch.testing.assert_close(plain.rho, turned.rho, atol=1e-8, rtol=0)


def test_an_exact_map_is_carried_whole():
    # P4.5
    x = normal(0, N, D) + 1
    y = x @ normal(1, D, D) + 4
    found = Canonical.of(x, y)
    torch.testing.assert_close(found.rho, torch.ones(D).double(), atol=1e-9, rtol=0)
    assert found.size == pytest.approx(D)
    (one,) = transport_efficiency(x, y, fit_transport(x, y), [D])
    assert one.r2 == pytest.approx(1)
    assert one.efficiency == pytest.approx(1)


def test_independent_layers_share_no_more_than_chance():
    # P4.6: the expected sum of squared correlations is d_in * d_out / N.
    ceilings = [Canonical.of(normal(s, N, D), normal(99 + s, N, D)).ceiling(D) for s in range(30)]
    assert sum(ceilings) / 30 == pytest.approx(D / (N - 1), rel=0.15)


def test_a_layer_is_carried_to_itself_and_an_atom_that_is_made_anew_is_not(pair):
    # P4.7
    x, y = pair
    atoms = normal(3, 9, D)
    same = fit_transport(x, x)
    torch.testing.assert_close(same.T, torch.eye(D).double(), atol=1e-8, rtol=0)
    ones = torch.ones(9).double()
    torch.testing.assert_close(latent_transport(same, x, x, atoms), ones, atol=1e-10, rtol=0)
    fresh = y.clone()
    fresh[:, 0] = normal(4, N)
    found = latent_transport(fit_transport(x, fresh), x, fresh, torch.eye(D).double())
    assert float(found[0]) < 0.1 < float(found[1:].max())


def test_the_size_lies_between_one_and_the_width(pair):
    # P4.8, and it is one where a single direction is carried.
    x, y = pair
    assert 1 <= Canonical.of(x, y).size <= D
    assert Canonical.of(x[:, :1], x[:, :1] * 2).size == pytest.approx(1)


def test_directions_that_do_not_vary_count_for_nothing(pair):
    x, y = pair
    flat = torch.cat([y, torch.full((N, 2), 3.0).double()], dim=1)
    assert Canonical.of(x, flat).ceiling(D) == pytest.approx(Canonical.of(x, y).ceiling(D))


def test_rows_that_do_not_pair_up_or_do_not_vary_are_refused(pair):
    x, y = pair
    with pytest.raises(UsageError, match="got 400 and 399"):
        fit_transport(x, y[1:])
    with pytest.raises(UsageError, match="at least 2; got 1 and 1"):
        Canonical.of(x[:1], y[:1])
    with pytest.raises(UsageError, match="are all alike"):
        Canonical.of(x, torch.ones_like(y))


@pytest.mark.slow
def test_in_the_tiny_model_more_is_carried_over_one_block_than_over_three(tiny_lm):
    """Measured on 2,520 tokens: 65 % at full rank over one block, 40 % over three."""
    from saelab.lm.tiny import grammar

    documents = grammar.generate(3, 0, 40, split="held-out", n_ctx=64)
    tokens = torch.from_numpy(documents.tokens).long()
    sites = [f"blocks.{layer}.hook_resid_post" for layer in (0, 1, 3)]
    seen = tiny_lm.capture(tokens, sites)
    # The first position holds <bos> alone, whose activations are all alike.
    early, near, far = (seen[site][:, 1:].flatten(0, 1) for site in sites)
    width = early.shape[1]
    ceilings = [Canonical.of(early, later).ceiling(width) for later in (near, far)]
    assert 1 > ceilings[0] > ceilings[1] > 0
    atoms = torch.eye(width)
    copied = Transport(torch.eye(width).double(), torch.zeros(width).double())
    fitted = fit_transport(early, near)
    gain = latent_transport(fitted, early, near, atoms) - latent_transport(
        copied, early, near, atoms
    )
    assert float(gain.min()) >= 0

"""Rows made of known atoms, x = values @ atoms + noise: what an SAE should find is then known.

Atoms and values are drawn apart, so that rows for testing share the atoms of those for training.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SMALLEST, LARGEST = 0.5, 1.5
"""Values are drawn uniformly between these; a feature that is off has the value 0."""
MOST_OFTEN = 0.9
"""The largest share of rows that a feature of `zipf_values` is on in."""


def orthonormal_atoms(n: int, d_in: int, *, seed: int = 0) -> Float[Tensor, "feature d_in"]:
    """`n` orthogonal unit directions; n is at most d_in."""
    square = torch.randn(d_in, d_in, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(square).Q[:n].contiguous()


def bar_atoms(size: int) -> Float[Tensor, "feature d_in"]:
    """The bars test's atoms: the rows and the columns of an image of size x size, each pixel 1."""
    lines = torch.eye(size).repeat_interleave(size, dim=1)
    return torch.cat([lines, torch.eye(size).repeat(1, size)])


def switches(
    n_rows: int, n_features: int, *, rate: float, signed: bool = False, seed: int = 0
) -> Float[Tensor, "row feature"]:
    """Independent features that are on (1) at this rate; with `signed`, half of them -1."""
    generator = torch.Generator().manual_seed(seed)
    on = (torch.rand(n_rows, n_features, generator=generator) < rate).float()
    return on * (1 - 2 * torch.randint(2, on.shape, generator=generator)) if signed else on


def group_atoms(
    n_groups: int, per_group: int, *, space: int, seed: int = 0
) -> Float[Tensor, "feature d_in"]:
    """Groups of coherent atoms: each group in `space` dimensions of its own, which are orthogonal.

    d_in is n_groups * space. With per_group > space a group's atoms cannot be orthogonal; those
    of different groups are. With `group_values` only the latter occur together.
    """
    bases = orthonormal_atoms(n_groups * space, n_groups * space, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    places = F.normalize(torch.randn(n_groups, per_group, space, generator=generator), dim=-1)
    return (places @ bases.view(n_groups, space, -1)).flatten(0, 1)


def group_values(
    n_rows: int, n_groups: int, per_group: int, *, active: int, seed: int = 0
) -> Float[Tensor, "row feature"]:
    """In every row `active` groups have one feature on each, in the order of `group_atoms`."""
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(n_rows, n_groups, generator=generator).argsort(dim=1) < active
    which = torch.randint(per_group, (n_rows, n_groups), generator=generator)
    features = (F.one_hot(which, per_group) * on[..., None]).flatten(1)
    return features * _sizes(features.shape, generator)


def uneven_values(
    n_rows: int, n_features: int, *, mean_active: float, signed: bool = False, seed: int = 0
) -> Float[Tensor, "row feature"]:
    """Independent features, of which some rows have many and others few.

    A row's own expected number of active features is drawn from an exponential distribution with
    mean `mean_active` (at most all of them). With `signed`, half of all values are negative: each
    feature then has two poles that exclude each other.
    """
    generator = torch.Generator().manual_seed(seed)
    rate = torch.empty(n_rows, 1).exponential_(n_features / mean_active, generator=generator)
    active = torch.rand(n_rows, n_features, generator=generator) < rate
    values = active * _sizes((n_rows, n_features), generator)
    if signed:
        values = values * (1 - 2 * torch.randint(2, values.shape, generator=generator))
    return values


def zipf_values(
    n_rows: int, n_features: int, *, mean_active: float, seed: int = 0
) -> Float[Tensor, "row feature"]:
    """Independent features, of which the i-th is on at a rate proportional to 1 / i, at most 0.9.

    A row has `mean_active` active features on average: few features are on often, most seldom.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = 1 / torch.arange(1, n_features + 1, dtype=torch.float64)
    rates = mean_active * weights / weights.sum()
    while float(rates.max()) > MOST_OFTEN:
        # The others share what the most frequent ones may not have.
        full = rates >= MOST_OFTEN
        left = mean_active - MOST_OFTEN * int(full.sum())
        rates = torch.where(full, MOST_OFTEN, left * weights / weights[~full].sum())
    active = torch.rand(n_rows, n_features, generator=generator) < rates.float()
    return active * _sizes((n_rows, n_features), generator)


def tree_values(
    n_rows: int,
    n_parents: int,
    n_children: int,
    *,
    parent_rate: float,
    child_rate: float,
    seed: int = 0,
) -> Float[Tensor, "row feature"]:
    """Parents are on independently; where one is on, at `child_rate` exactly one child is too.

    The first n_parents features are the parents, the others the children of each. A row has
    n_parents * parent_rate * (1 + child_rate) active features on average.
    """
    generator = torch.Generator().manual_seed(seed)
    parent = torch.rand(n_rows, n_parents, generator=generator) < parent_rate
    has_child = parent & (torch.rand(n_rows, n_parents, generator=generator) < child_rate)
    which = torch.randint(n_children, (n_rows, n_parents), generator=generator)
    child = F.one_hot(which, n_children) * has_child[..., None]
    active = torch.cat([parent, child.flatten(1)], dim=1)
    return active * _sizes(active.shape, generator)


def rows(
    values: Float[Tensor, "row feature"],
    atoms: Float[Tensor, "feature d_in"],
    *,
    noise: float = 0.02,
    seed: int = 0,
) -> Float[Tensor, "row d_in"]:
    """The rows that these values make, with Gaussian noise of this standard deviation."""
    x = values @ atoms
    return x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def _sizes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return SMALLEST + (LARGEST - SMALLEST) * torch.rand(shape, generator=generator)

"""A store of two sites of which it is known what the later one has from the earlier one."""

from dataclasses import dataclass
from pathlib import Path

import torch

from saelab.activations.arrays import write_arrays
from saelab.activations.store import ActivationStore
from saelab.sae.jumprelu import JumpReLUConfig
from saelab.testing import planted
from saelab.training.adopt import adopt
from saelab.training.run import Run

N, N_FEATURES, N_CARRIED, D_IN, D_OUT = 4000, 8, 4, 10, 12
NOISE = 0.15
"""Standard deviation of what feature 0 gains on its way."""


@dataclass(frozen=True)
class Planted:
    """Features 0 to 3 are carried by a map of rank 4, the others are made at the later site.

    Attributes:
        values: of each feature in each row, as the later site has it.
    """

    run: Run
    store: ActivationStore
    x: torch.Tensor
    y: torch.Tensor
    values: torch.Tensor


def write_planted(root: Path) -> Planted:
    """Write the store and the run, whose atoms are the features, below `root`."""
    draw = torch.Generator().manual_seed(1)
    on, size = (torch.rand(N, N_FEATURES, generator=draw) for _ in range(2))
    values = (on < 0.25) * (size + 0.5)
    # The earlier site knows the first half, each on its own axis, beside numbers of no use.
    x = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(2)) + 3
    x[:, :N_CARRIED] = values[:, :N_CARRIED]
    x = x @ planted.orthonormal_atoms(D_IN, D_IN, seed=3)
    gained = NOISE * torch.randn(N, generator=torch.Generator().manual_seed(4))
    values[:, 0] += torch.where(values[:, 0] > 0, gained, 0.0)
    atoms = planted.orthonormal_atoms(N_FEATURES, D_OUT, seed=5)
    y = planted.rows(values, atoms, noise=0.001, seed=6) + 1
    path = write_arrays(root / "store", {"early": x, "late": y}, rows_per_unit=1500)
    sae = JumpReLUConfig(d_sae=N_FEATURES, k=None).build(D_OUT)
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_(atoms.T)
        sae.b_dec.fill_(1.0)
        sae.b_enc.copy_(-sae.b_dec @ sae.W_enc)
        sae.threshold.fill_(0.05)
    run = adopt(sae, activations=path, site="late", out=root / "run", origin="planted")
    return Planted(run, ActivationStore(path), x, y, values)

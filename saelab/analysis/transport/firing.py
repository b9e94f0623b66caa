"""R² of a map along each latent's decoder row, on the tokens where the latent fires.

`a = y · d / |d|` is what the latent's direction d reads from the later site, `a_hat` the same of
the transported row, and R² = 1 - sum (a - a_hat)² / sum (a - mean a)² over the tokens where the
latent fires (arXiv 2508.17540). The map of a token's row was fitted on other documents.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from saelab.analysis.transport.ranked import RankedMaps
from saelab.evaluation.jackknife import jackknife
from saelab.sae.base import AbstractSAE
from saelab.types import SparseCodes

LEAST_FIRINGS = 30
"""Latents that fire on fewer tokens have no R²."""
N_DIRECTIONS = 256
"""Random directions; latent i has the i-th of them, counted in turns."""
NUMBERS_AT_ONCE = 2**24


@dataclass(frozen=True)
class LatentR2:
    """R² of each latent on the tokens where it fires; NaN below LEAST_FIRINGS of them.

    Attributes:
        n_fired: number of these tokens.
        r2: of the maps of each rank.
        low, high: ends of the 95 % interval at the largest rank (see `jackknife`), which leave
            out documents that are measured; the maps stay as they are.
        identity: of the earlier row, shifted by the difference of the means; NaN if widths differ.
        mean: of the mean of all tokens; at most 0, as the latent's own mean is what R² is against.
        direction: of the map along a random direction, on the latent's tokens.
        other: of the map along the decoder row of another latent, on the latent's tokens.
    """

    n_fired: Int[Tensor, " latent"]
    r2: Float[Tensor, "rank latent"]
    low: Float[Tensor, " latent"]
    high: Float[Tensor, " latent"]
    identity: Float[Tensor, " latent"]
    mean: Float[Tensor, " latent"]
    direction: Float[Tensor, " latent"]
    other: Float[Tensor, " latent"]


SUMS = ("n", "a", "aa", "c", "cc", "missed_c", "o", "oo", "missed_o")
"""Sums over a latent's tokens: their number; a = y · d and its square; the same along a random
direction (c) and along another latent's (o), with the squared error there."""


class FiringSums:
    """Collects the sums that R² needs, by group of documents and latent.

    Args:
        maps: for each fold, the maps fitted on the other folds.
        mean: the later site's mean over all rows.
        ranks: ranks to measure, the last of which has the intervals.
    """

    def __init__(
        self,
        sae: AbstractSAE,
        maps: Sequence[RankedMaps],
        mean: Float[Tensor, " d_out"],
        ranks: Sequence[int],
        *,
        n_groups: int,
        seed: int,
    ) -> None:
        atoms = F.normalize(sae.W_dec.detach().float(), dim=1)
        self.atoms, self.mean, self.n_groups = atoms, mean.float(), n_groups
        self.d_sae, width = atoms.shape
        draw = torch.Generator().manual_seed(seed)
        random = torch.randn(min(N_DIRECTIONS, self.d_sae), width, generator=draw)
        self.random = F.normalize(random, dim=1).to(atoms.device)
        # A latent's other one is a fixed number of places away, so it is never itself.
        away = 1 + int(torch.randint(max(1, self.d_sae - 1), (1,), generator=draw))
        self.others = (torch.arange(self.d_sae, device=atoms.device) + away) % self.d_sae
        self.maps = [[_matrix(fold, rank) for rank in ranks] for fold in maps]
        self.means = [(fold.mean_x.float(), fold.mean_y.float()) for fold in maps]
        self.n_ranks, self.alike = len(ranks), len(maps[0].mean_x) == width
        n_sums = len(SUMS) + self.n_ranks + self.alike
        self.sums = torch.zeros(
            n_sums, n_groups * self.d_sae, dtype=torch.float64, device=atoms.device
        )

    def add(
        self,
        codes: SparseCodes,
        x: Float[Tensor, "n d_in"],
        y: Float[Tensor, "n d_out"],
        group: Int[Tensor, " n"],
    ) -> None:
        """Count the firings of rows of the two sites."""
        codes = codes.rectangular()
        errors = self._errors(x, y, group % len(self.maps))
        rows = torch.stack([y - self.mean, *errors], dim=1)
        # Of a random direction and of another latent, the activation and the last rank's error.
        turned = rows[:, [0, self.n_ranks]] @ self.random.T
        width = max(1, codes.indices.shape[1]) * y.shape[1]
        for part in torch.arange(len(y), device=y.device).split(max(1, NUMBERS_AT_ONCE // width)):
            latent, on = codes.indices[part], codes.active[part]
            own = self.atoms[latent] @ rows[part].mT
            beside = self.atoms[self.others[latent]] @ rows[part][:, [0, self.n_ranks]].mT
            turn = (latent % len(self.random))[:, None].expand(-1, 2, -1)
            aside = turned[part].gather(2, turn).mT
            place = (group[part][:, None] * self.d_sae + latent)[on]
            self._count(place, own[on].double(), aside[on].double(), beside[on].double())

    def _count(
        self,
        place: Int[Tensor, " event"],
        own: Float[Tensor, "event _"],
        aside: Float[Tensor, "event 2"],
        beside: Float[Tensor, "event 2"],
    ) -> None:
        """Add what each firing's directions read of the row and of the errors: see `SUMS`."""
        a, c, o = own[:, 0], aside[:, 0], beside[:, 0]
        sums = [torch.ones_like(a), a, a.square()]
        sums += [c, c.square(), aside[:, 1].square(), o, o.square(), beside[:, 1].square()]
        for total, column in zip(self.sums, [*sums, *own[:, 1:].square().T], strict=True):
            total.index_add_(0, place, column)

    def _errors(
        self, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"], fold: Int[Tensor, " n"]
    ) -> list[Float[Tensor, "n d_out"]]:
        """The error of the maps of each rank, and of the identity if the sites are equally wide."""
        out = [torch.empty_like(y) for _ in range(self.n_ranks + self.alike)]
        for f, (maps, (mean_x, mean_y)) in enumerate(zip(self.maps, self.means, strict=True)):
            mine = torch.nonzero(fold == f)[:, 0]
            dx, dy = x[mine] - mean_x, y[mine] - mean_y
            for error, T in zip(out, maps, strict=False):
                error[mine] = dy - dx @ T
            if self.alike:
                out[-1][mine] = dy - dx
        return out

    def results(self) -> LatentR2:
        """R² and its intervals."""
        by_group = self.sums.view(len(self.sums), self.n_groups, self.d_sae)
        sums, missed = by_group.sum(1), by_group[len(SUMS) :]
        n, a, aa, c, cc, missed_c, o, oo, missed_o = sums[: len(SUMS)]
        enough = n >= LEAST_FIRINGS

        def known(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
            return torch.where(enough, values, float("nan")).float().cpu()

        own = torch.stack([*by_group[:3], missed[self.n_ranks - 1]], dim=1)
        _, low, high = jackknife(own, lambda s: _r2(*s), by_group[0] > 0)
        found = [_r2(n, a, aa, each) for each in sums[len(SUMS) :]]
        identity = found[-1] if self.alike else torch.full_like(n, float("nan"))
        return LatentR2(
            n.long().cpu(),
            known(torch.stack(found[: self.n_ranks])),
            known(low),
            known(high),
            known(identity),
            known(_r2(n, a, aa, aa)),
            known(_r2(n, c, cc, missed_c)),
            known(_r2(n, o, oo, missed_o)),
        )


def _matrix(maps: RankedMaps, rank: int) -> Float[Tensor, "d_in d_out"]:
    return (maps.U[:, :rank] @ maps.P[:, :rank].T).float()


def _r2(
    n: Float[Tensor, " latent"],
    a: Float[Tensor, " latent"],
    aa: Float[Tensor, " latent"],
    missed: Float[Tensor, " latent"],
) -> Float[Tensor, " latent"]:
    spread = aa - a.square() / n.clamp_min(1)
    # A direction that reads the same on all of a latent's tokens has no variance to explain.
    constant = spread <= 1e-9 * aa
    return torch.where(constant, float("nan"), 1 - missed / spread.clamp_min(1e-300))


def along(
    atoms: Float[Tensor, "latent d_out"],
    residual: Float[Tensor, "d_out d_out"],
    spread: Float[Tensor, "d_out d_out"],
) -> Float[Tensor, " latent"]:
    """R² along each decoder row on all tokens, from the errors' and the rows' second moments."""
    d = F.normalize(atoms.double(), dim=1)
    missed, whole = (((d @ square) * d).sum(1) for square in (residual, spread))
    return 1 - missed / whole.clamp_min(1e-300)


def covered(ranks: Iterable[int], most: int) -> tuple[int, ...]:
    """The ranks to measure: those asked for, by default 1, 4, 16, ... and the largest."""
    chosen = tuple(sorted(set(ranks)))
    if chosen:
        return chosen
    return tuple(dict.fromkeys([*(4**i for i in range(32) if 4**i < most), most]))

"""The mean activation and code of each text, added up batch by batch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.evaluation.rows import Rows, active_entries
from saelab.types import SparseCodes


class TextMeans:
    """Sums of activations and codes over the tokens of each text, for their means."""

    def __init__(self, n: int, d_sae: int) -> None:
        self.n, self.d_sae = n, d_sae
        self.count = torch.zeros(n, dtype=torch.long)
        self.x: Tensor | None = None
        self.target: Tensor | None = None
        self.entries: list[tuple[Tensor, Tensor]] = []

    def add(
        self,
        text: Int[Tensor, " row"],
        x: Float[Tensor, "row d_in"],
        target: Float[Tensor, "row d_out"] | None,
        codes: SparseCodes,
    ) -> None:
        """Add the rows of some texts, all of a text at once."""
        self.count += torch.bincount(text.cpu(), minlength=self.n)
        self.x = _summed(self.x, self.n, text, x)
        self.target = None if target is None else _summed(self.target, self.n, text, target)
        row, latent, value = active_entries(codes)
        place, which = (text[row] * self.d_sae + latent).unique(return_inverse=True)
        sums = torch.zeros(len(place), dtype=torch.float64, device=value.device)
        sums.index_add_(0, which, value.double())
        self.entries.append((place.cpu(), sums.cpu()))

    def rows(self, token: Int[Tensor, " text"]) -> Rows:
        """The means of the texts that have any row.

        Raises:
            UsageError: none has.
        """
        kept = self.count > 0
        if self.x is None or not bool(kept.any()):
            raise UsageError("The SAE applies to no token of these texts; give others.")
        count = self.count[kept]
        place = torch.cat([place for place, _ in self.entries])
        order = place.argsort()
        place, value = place[order], torch.cat([sums for _, sums in self.entries])[order]
        # Texts without a row have no entry either.
        text = (kept.cumsum(0) - 1)[place // self.d_sae]
        starts = torch.searchsorted(text, torch.arange(len(count)))
        values = (value / count[text]).float()
        codes = SparseCodes(values, place % self.d_sae, self.d_sae, starts)
        over = count[:, None]
        target = None if self.target is None else (self.target[kept] / over).float()
        fit = torch.ones(len(count), dtype=torch.bool)
        x = (self.x[kept] / over).float()
        return Rows(x, codes, token[kept], fit, target=target)


def _summed(
    sums: Tensor | None, n: int, text: Int[Tensor, " row"], x: Float[Tensor, "row d"]
) -> Float[Tensor, "text d"]:
    sums = torch.zeros(n, x.shape[1], dtype=torch.float64) if sums is None else sums
    return sums.index_add_(0, text.cpu(), x.double().cpu())

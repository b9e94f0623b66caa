"""The latents of one SAE that are active on a prompt, and products with their weights."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.sae.affine import LinearCodes, TakenRows
from saelab.sites import Place

TABLE = 2**22
"""Numbers of the decoder rows that are multiplied together."""


@dataclass(frozen=True)
class Skip:
    """A skip connection on a prompt: `written = x @ W` where the transcoder is applied."""

    W: Float[Tensor, "d_in d_out"]
    written: Float[Tensor, "pos d_out"]
    applies: Bool[Tensor, " pos"]

    def transpose(
        self, at_out: Float[Tensor, "target pos d_out"]
    ) -> Float[Tensor, "target pos d_in"]:
        """Gradients at the input from gradients at the output."""
        return (at_out * self.applies[:, None]) @ self.W.T


@dataclass(frozen=True)
class FurtherRows:
    """What the active latents of a layer write to the MLP output of a later one.

    Attributes:
        place: of that MLP.
        rows: decoder rows, one per active latent, as `Active.decoder` has them.
        lands: the positions of the prompt where it is written.
    """

    place: Place
    rows: TakenRows
    lands: Bool[Tensor, " pos"]


@dataclass(frozen=True)
class Active:
    """The active latents of one SAE on the prompt.

    Attributes:
        codes: one entry per active latent; `row` is the position.
        decoder: the row of W_dec of each entry.
        b_dec: the constant part by position; zero where the SAE is not applied.
        error: the activations minus latents, b_dec and skip, by position; the whole activation
            where the SAE is not applied.
        applies: the positions where the SAE is applied.
        skip: a transcoder's skip connection and its output; None without one.
        before_post: whether its output passes the block's post-norm or multiplier before the
            stream, as the heads' output always does.
        further: where else a layer of a cross-layer transcoder writes.
        layer_of: the name of that transcoder, and the number of this layer's first latent in it.
    """

    name: str
    place: Place
    codes: LinearCodes
    decoder: Float[Tensor, "n d_out"] | TakenRows
    b_dec: Float[Tensor, "pos d_out"]
    error: Float[Tensor, "pos d_out"]
    applies: Bool[Tensor, " pos"]
    skip: Skip | None = None
    before_post: bool = False
    further: tuple[FurtherRows, ...] = ()
    layer_of: tuple[str, int] | None = None

    @cached_property
    def at(self) -> tuple[slice, ...]:
        """The range of entries of each position; entries are sorted by position."""
        counts = torch.bincount(self.codes.row, minlength=len(self.error)).tolist()
        ends = torch.tensor([0, *counts]).cumsum(0).tolist()
        return tuple(slice(a, b) for a, b in pairwise(ends))

    @cached_property
    def _tables(self) -> tuple["_Table", ...]:
        """The entries by position, so that one product serves many positions."""
        width, out, first = max(self.decoder.shape[1], self.codes.encoder.shape[1]), [], 0
        sizes = [span.stop - span.start for span in self.at]
        for last in range(len(sizes)):
            # A few positions with many latents must not pad the others.
            if last > first and max(sizes[first : last + 1]) * (last + 1 - first) * width > TABLE:
                out.append(self._table(first, last))
                first = last
        return (*out, self._table(first, len(sizes)))

    def _table(self, first: int, last: int) -> "_Table":
        spans = self.at[first:last]
        starts, ends = (torch.tensor([getattr(s, end) for s in spans]) for end in ("start", "stop"))
        entry = starts[:, None] + torch.arange(max(1, int((ends - starts).max())))
        there = (entry < ends[:, None]).to(self.error.device)
        entry = entry.clamp(max=max(0, len(self.codes) - 1)).to(self.error.device)
        return _Table(slice(first, last), slice(spans[0].start, spans[-1].stop), entry, there)

    def decoder_products(
        self,
        at_out: Float[Tensor, "target pos d_out"],
        rows: Float[Tensor, "n d_out"] | TakenRows | None = None,
    ) -> Float[Tensor, "target n"]:
        """Gradients at the latents from gradients at the output; `rows` are another decoder's."""
        decoder = self.decoder if rows is None else rows
        out = at_out.new_zeros(len(at_out), len(self.codes))
        for table in self._tables if len(self.codes) else ():
            taken = decoder[table.entry.flatten()].unflatten(0, table.entry.shape)
            found = einsum(at_out[:, table.positions], taken, "t p d, p k d -> t p k")
            out[:, table.entries] = found[:, table.there]
        return out

    def encoder_sums(self, given: Float[Tensor, "target n"]) -> Float[Tensor, "target pos d_in"]:
        """Gradients at the input from gradients at the latents."""
        return self._sums(given, self.codes.encoder)

    def _sums(
        self, given: Float[Tensor, "target n"], rows: Float[Tensor, "n d"] | TakenRows
    ) -> Float[Tensor, "target pos d"]:
        out = given.new_zeros(len(given), len(self.error), rows.shape[1])
        for table in self._tables if len(self.codes) else ():
            taken = rows[table.entry.flatten()].unflatten(0, table.entry.shape)
            weights = given[:, table.entry] * table.there
            out[:, table.positions] = einsum(weights, taken, "t p k, p k d -> t p d")
        return out

    def written_further(self, further: FurtherRows) -> Float[Tensor, "pos d_out"]:
        """What its latents write to a later MLP output."""
        return self._sums(self.codes.values[None], further.rows)[0] * further.lands[:, None]

    def written(self) -> Float[Tensor, "pos d_out"]:
        """What the SAE itself represents: latents, skip connection, b_dec and error."""
        latents = self._sums(self.codes.values[None], self.decoder)[0]
        given = 0 if self.skip is None else self.skip.written
        return latents + given + self.b_dec + self.error


@dataclass(frozen=True)
class _Table:
    """The entries of consecutive positions, padded to the most that one of them has.

    Attributes:
        positions, entries: which, both consecutive.
        entry: numbers of the entries.
        there: False for padding.
    """

    positions: slice
    entries: slice
    entry: Int[Tensor, "pos most"]
    there: Bool[Tensor, "pos most"]

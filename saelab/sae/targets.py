"""What an SAE reconstructs beside its latents' part; how a transcoder starts, and its layers."""

import abc
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.config import UsageError
from saelab.sae.dictionary import random_unit_rows
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.row_norm import RowNorm


class TargetBlock(NamedTuple):
    """What a transcoder reads and writes at one site, and the weights between them.

    Attributes:
        rows, targets: sampled activations of the site.
        atoms: the decoder rows of the latents that read it, as they write to its own target.
        columns: the encoder's columns of these latents; a view.
    """

    rows: Float[Tensor, "row d_in"]
    targets: Float[Tensor, "row d_out"]
    atoms: Float[Tensor, "latent d_out"]
    columns: Float[Tensor, "d_in latent"]


class LayerTranscoder(NamedTuple):
    """One layer of a cross-layer transcoder, as a transcoder that also writes further on.

    Attributes:
        first: the number of its first latent in the whole; others follow.
        own: what it reads and writes at its own layer. Its encoder reads x, without `centre`.
        centre: what training subtracts from x first, in exact arithmetic a part of `own.b_enc`.
        later: decoder rows for the second, third, ... target from its own on; views.
    """

    first: int
    own: ForeignSAE
    centre: Float[Tensor, " d_in"]
    later: tuple[Float[Tensor, "latent d_out"], ...]


class AbstractTargets(nn.Module, abc.ABC):
    """The answers of an SAE of one site; one of several sites overrides them."""

    W_dec: nn.Parameter
    b_dec: nn.Parameter
    row_norm: RowNorm | None = None
    """How rows are normalised before they are read, see `saelab.sae.row_normalised`."""

    def resting(
        self, x: Float[Tensor, "batch d_in"] | None
    ) -> Float[Tensor, " d_out"] | Float[Tensor, "batch d_out"]:
        """What is reconstructed where no latent fires, without a skip connection.

        It is b_dec, or depends on the row where rows are normalised; then `x` is needed (where rows
        are only centred, their mean is left out without it).
        """
        return self.b_dec

    def target_rows(
        self, d_out: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "d_sae d_row"]:
        """Random decoder rows of a transcoder that writes `d_out` numbers."""
        return random_unit_rows(len(self.W_dec), d_out, generator)

    def blocks(
        self, rows: Float[Tensor, "row d_in"], targets: Float[Tensor, "row d_out"]
    ) -> Iterator[TargetBlock]:
        """The sites of a transcoder, each with its weights: one, or several of a joint site."""
        yield TargetBlock(rows, targets, self.W_dec, self.get_parameter("W_enc"))

    def read_sites_times(self, reads: Sequence[float], writes: Sequence[float]) -> None:
        """Let an SAE of several sites read each times a number, and reconstruct it so.

        Raises:
            UsageError: it reads a single site.
        """
        raise UsageError(f"This {type(self).__name__} reads one site, not {len(reads)}.")

    def transcoders(self) -> tuple[LayerTranscoder, ...]:
        """The layers of a cross-layer transcoder, which infer alone; none of any other SAE."""
        return ()

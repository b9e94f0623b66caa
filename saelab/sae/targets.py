"""What an SAE reconstructs beside its latents' part, and how a transcoder of it starts."""

import abc
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.sae.dictionary import random_unit_rows
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

        It is b_dec, or depends on the row where rows are normalised; then `x` is needed.
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

"""An SAE of normalised rows, as one of plain rows: the norm is a part of it.

Its codes are those of the SAE within times the row's s(x), see `saelab.sae.row_norm`. So they are
in units of the activations, z @ W_dec is the latents' part of x_hat as of any SAE, and

    x_hat = z @ W_dec + s(x) b_dec + m(x).

With s(x) held fixed, as circuits hold the model's norms, an active latent is affine in x.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from saelab.config import UsageError
from saelab.sae.affine import AffineEncoder, LinearCodes
from saelab.sae.base import AbstractSAE
from saelab.sae.checks import check_rows
from saelab.sae.row_norm import RowNorm, row_scale
from saelab.types import SparseCodes


@final
class RowNormalised(AbstractSAE):
    """A trained SAE whose rows are normalised before it reads them; see the module.

    Attributes:
        inner: the SAE of normalised rows, whose weights are those of this one.
        row_norm: how rows are normalised.
    """

    unit_atoms = False

    def __init__(self, inner: AbstractSAE, row_norm: RowNorm) -> None:
        super().__init__()
        if inner.is_transcoder:
            raise UsageError(
                f"A transcoder cannot undo {row_norm} of what it reads in what it writes."
            )
        self.config, self.inner, self.row_norm = inner.config, inner, row_norm
        self._scale = partial(row_scale, row_norm)

    @property
    @override
    def W_dec(  # pyrefly: ignore[bad-override]
        self,
    ) -> nn.Parameter:
        """The decoder of the SAE within."""
        return self.inner.W_dec

    @property
    @override
    def b_dec(self) -> nn.Parameter:  # pyrefly: ignore[bad-override]
        """Its bias, in units of normalised rows."""
        return self.inner.b_dec

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.inner.state_dict(*args, **kwargs)

    @override
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.load_state_dict(*args, **kwargs)

    @override
    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return self.inner.named_parameters(*args, **kwargs)

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        check_rows(x, self.d_in)
        rows = self._scale(x)
        codes = self.inner.encode(rows.normalised(x))
        return replace(codes, values=codes.values * rows.scale[codes.rows(), 0])

    @override
    def resting(
        self, x: Float[Tensor, "batch d_in"] | None
    ) -> Float[Tensor, " d_out"] | Float[Tensor, "batch d_out"]:
        if x is None and self.row_norm == "centre":
            return self.b_dec  # all but the row's own mean, which needs no scale
        if x is None:
            raise UsageError(
                f"This SAE normalises rows ({self.row_norm}); decode(codes, x) needs the rows."
            )
        rows = self._scale(x)
        return rows.undone(self.b_dec.expand(len(x), -1).to(x.dtype))

    @override
    def linear_codes(self, x: Float[Tensor, "batch d_in"], codes: SparseCodes) -> LinearCodes:
        encoder = self.inner.affine_encoder()
        if encoder is None:
            return self.inner.linear_codes(x, codes)  # refuses
        W_enc = encoder.W_enc.to(x.dtype)
        if self.row_norm != "unit-norm":
            W_enc = W_enc - W_enc.mean(dim=0)
        found = AffineEncoder(W_enc, torch.zeros_like(encoder.b_enc), None).at(x, codes)
        bias = encoder.b_enc.to(x.dtype)
        if encoder.centre is not None:
            bias = bias - encoder.centre.to(x.dtype) @ encoder.W_enc.to(x.dtype)
        rows = self._scale(x)
        # s / t differs from 1 by the epsilon of a layer norm.
        slope = (rows.scale / rows.divisor)[found.row, 0]
        constant = rows.scale[found.row, 0] * bias[found.latent]
        values = found.values * slope + constant
        # What the slope's rounding takes off is constant while the norm is.
        return replace(found, values=values, constant=values - found.values)

    @override
    def initialise(self, rows: Float[Tensor, "n d_in"]) -> NoReturn:
        raise self._untrained

    @override
    def training_pass(self, batch: object, context: object) -> NoReturn:
        raise self._untrained

    @override
    def rescale(self, scale: float, target_scale: float | None = None) -> NoReturn:
        raise self._untrained

    @override
    def fused_rule(self) -> str:
        return f"it normalises the rows that it reads ({self.row_norm})"

    @property
    def _untrained(self) -> UsageError:
        return UsageError(
            f"An SAE of rows normalised by {self.row_norm} comes from another tool and is not "
            "trained further; train one of its variant."
        )

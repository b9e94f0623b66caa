"""A trained SAE with another encoder: what its dictionary can do if codes are searched for.

An SAE's encoder is one pass of a network. A pursuit in the same dictionary finds better codes at
the same L0, and the difference is the encoder's part of the SAE's error, the amortisation gap
(arXiv 2411.13117).
"""

from typing import Literal, NoReturn, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from saelab.config import UsageError
from saelab.pursuit.encoder_names import GREEDY
from saelab.pursuit.encoders import RowEncoder, calibrated
from saelab.sae.base import AbstractSAE
from saelab.sae.checks import check_rows
from saelab.types import SparseCodes

CALIBRATION_ROWS = 512
"""Rows on which the sparsity of an encoder is set."""
Weights = Literal["none", "firing"]


@final
class WithEncoder(AbstractSAE):
    """The decoder and the biases of a trained SAE, shared with it, and another encoder.

    Codes describe what is reconstructed without the biases: x - b_dec, and of a transcoder
    target - b_dec, less the skip connection. They are those of the decoder's rows as they are.

    Attributes:
        trained: the SAE with its own encoder.
        encoder: what encodes instead.
        as_many: whether `omp` and `mp` take as many atoms in each row as the SAE's own encoder.
    """

    unit_atoms = False

    def __init__(self, trained: AbstractSAE, encoder: RowEncoder, *, as_many: bool) -> None:
        super().__init__()
        self.as_many = as_many and encoder.counts
        self.config, self.trained, self.encoder = trained.config, trained, encoder
        self.W_dec, self.b_dec = trained.W_dec, trained.b_dec
        self.b_in, self.W_skip = trained.b_in, trained.W_skip

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        return self.encode_for(x)

    @override
    @torch.no_grad()
    def encode_for(
        self, x: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_out"] | None = None
    ) -> SparseCodes:
        check_rows(x, self.d_in)
        if self.is_transcoder and target is None:
            raise UsageError(
                f"{self.encoder.name} encodes what a transcoder reconstructs; give the target too."
            )
        wanted = target if self.is_transcoder and target is not None else x
        atoms, counts = Atoms(self.W_dec), None
        if self.as_many:
            counts = self.trained.encode(x).rectangular().active.sum(1)
        rows = (wanted - self.offset(x)).float()
        return atoms.codes(self.encoder.encode(rows, atoms.unit, counts))

    @override
    def initialise(self, rows: Float[Tensor, "n d_in"]) -> NoReturn:
        raise self._untrained

    @override
    def training_pass(self, batch: object, context: object) -> NoReturn:
        raise self._untrained

    @override
    def rescale(self, scale: float, target_scale: float | None = None) -> NoReturn:
        raise self._untrained

    @property
    def _untrained(self) -> UsageError:
        return UsageError(f"An SAE encoded by {self.encoder.name} is not trained; train its own.")


@final
class Atoms:
    """The decoder's rows with a direction, at unit norm.

    Attributes:
        unit: `[atom d_out]`, without rows that are zero.
    """

    def __init__(self, W_dec: Float[Tensor, "d_sae d_out"]) -> None:
        rows = W_dec.detach().float()
        self._norms, self._d_sae = rows.norm(dim=1), len(rows)
        self.kept = (self._norms > 0).nonzero().squeeze(1)
        whole = len(self.kept) == len(rows)
        self.unit = (rows if whole else rows[self.kept]) / self._norms[self.kept, None]

    def codes(self, found: SparseCodes) -> SparseCodes:
        """The codes of the decoder's rows, from those of unit atoms."""
        latents = self.kept[found.indices]
        return SparseCodes(found.values / self._norms[latents], latents, self._d_sae, found.offsets)


@torch.no_grad()
def with_encoder(
    sae: AbstractSAE,
    name: str,
    x: Float[Tensor, "row d_in"],
    target: Float[Tensor, "row d_out"] | None = None,
    *,
    l0: float | int | None = None,
    weights: Weights = "none",
) -> WithEncoder:
    """`sae` with another encoder, at the L0 of its own.

    Codes are signed if those of the SAE may be. `omp` and `mp` take as many atoms in each row as
    the SAE's own encoder. The other encoders have one penalty for all rows, with which the first
    512 rows given here have the SAE's mean L0.

    Args:
        sae: a trained SAE or transcoder with a linear decoder.
        name: one of `saelab.pursuit.encoders.ENCODERS`.
        x: rows that the SAE reads.
        target: rows that a transcoder reconstructs.
        l0: another mean L0 than the SAE's own; then `omp` and `mp` take as many atoms, rounded, in
            every row.
        weights: `firing`, for `omp-RULE`: choosing a latent costs what it costs to name it, -log of
            how often the SAE's own encoder chooses it on these rows.

    Raises:
        UsageError: the decoder is not linear, a target is missing or superfluous, the SAE's own
            codes are empty, or the encoder cannot have this L0 or weights.
    """
    _check(sae, target)
    own = sae.encode(x)
    x, target = x[:CALIBRATION_ROWS], None if target is None else target[:CALIBRATION_ROWS]
    as_many = l0 is None
    if l0 is None and not (l0 := sae.encode(x).mean_l0()):
        raise UsageError("The SAE has no active latent on these rows; give an L0.")
    atoms = Atoms(sae.W_dec)
    priced = None
    if weights == "firing":
        # Half a firing more for each, since most latents fire on few rows.
        rate = (own.firing_counts().double() + 0.5) / (len(own) + 1)
        cost = -rate.log()
        cost = cost / (cost * rate).sum() * rate.sum()
        priced = (cost.sqrt() if name.startswith(GREEDY) and name.endswith("l0") else cost).float()
        priced = priced[atoms.kept]
    rows = (x if target is None else target) - sae.offset(x)
    signed = sae.config.sparsity.signed
    encoder = calibrated(name, rows.float(), atoms.unit, l0, nonnegative=not signed, weights=priced)
    return WithEncoder(sae, encoder, as_many=as_many).eval()


def _check(sae: AbstractSAE, target: Tensor | None) -> None:
    problem = sae.config.decoder_problem
    if problem is None and type(sae).decode is not AbstractSAE.decode:
        problem = "it is not decoded by z @ W_dec + b_dec"
    if problem is not None:
        raise UsageError(f"A {sae.config.variant} SAE has no other encoder: {problem}.")
    if sae.is_transcoder != (target is not None):
        kind = "a transcoder; give" if sae.is_transcoder else "no transcoder; leave out"
        raise UsageError(f"The SAE is {kind} the rows that it should reconstruct.")

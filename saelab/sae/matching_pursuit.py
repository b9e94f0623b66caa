"""MP-SAE: latents chosen one after another, each for the residual (arXiv 2506.03093).

With the chosen latents and their order fixed, the codes are affine in x: c_k = w_k . (x - b_dec -
sum_{j<k} c_j w_j), so with the chosen atoms as rows of D, c = (I + tril(D D^T, -1))^-1 D (x -
b_dec), a triangular solve; an atom chosen twice is the sum of its two steps.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from saelab.kernels.rules import FusedRule
from saelab.pursuit.matching_pursuit import Pursuit, matching_pursuit, merged
from saelab.pursuit.select import among, top_k
from saelab.sae.affine import LinearCodes
from saelab.sae.aux_k import AuxKConfig, add_aux_k
from saelab.sae.base import AbstractSAE
from saelab.sae.checks import check_k, check_rows
from saelab.sae.context import LossContext
from saelab.sae.dictionary import geometric_median, normalise_rows, random_unit_rows
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.sparsity import Sparsity
from saelab.types import ActivationBatch, SparseCodes, TrainingPass


class MatchingPursuitConfig(AuxKConfig):
    """MP-SAE: k steps of matching pursuit in the decoder's own atoms (arXiv 2506.03093)."""

    variant: Literal["matching-pursuit"] = "matching-pursuit"
    k: int = Field(default=32, gt=0)
    """Steps of the pursuit. At most k latents are active per token, since a latent may be chosen
    again."""
    residual_threshold: float = Field(default=0.0, ge=0)
    """At inference a row's pursuit stops when its residual is shorter than this (in the
    activations' own units); 0: always k steps. Training always takes k steps."""

    @classmethod
    @override
    def of_foreign(cls, foreign: ForeignSAE) -> "MatchingPursuitConfig | None":
        return None if foreign.steps is None else cls(d_sae=foreign.d_sae, k=foreign.steps)

    @property
    @override
    def sparsity(self) -> Sparsity:
        return Sparsity("row", self.k)

    @override
    def check(self) -> None:
        check_k(self.k, self.d_sae)

    @property
    @override
    def transcoder_problem(self) -> str | None:
        return (
            "it subtracts decoder rows from what it reads, which a transcoder's do not reconstruct"
        )

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "MatchingPursuit":
        self.check()
        return MatchingPursuit(self, d_in, generator)


class MatchingPursuit(AbstractSAE[MatchingPursuitConfig]):
    """r = x - b_dec, then k times: z_j += ReLU(<r, w_j>) and r -= z_j w_j for the best atom j.

    The same atoms encode and decode. They stay unit, since otherwise a step could make the residual
    longer. b_dec is subtracted from x and added back; the authors' toy code has no b_dec.
    """

    unit_atoms = True

    def __init__(
        self, config: MatchingPursuitConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.W_dec = nn.Parameter(random_unit_rows(config.d_sae, d_in, generator))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:  # noqa: N802 - the field's name
        """The decoder's transpose."""
        return self.W_dec.T

    @property
    @override
    def encoder_products(self) -> int:
        """One for each step; a Gram matrix can stand for all but the first."""
        return self.config.k

    def pursue(
        self,
        x: Float[Tensor, "batch d_in"],
        n_steps: int | None = None,
        residual_threshold: float | None = None,
    ) -> Pursuit:
        """The steps in order; both options default to the configured ones."""
        given = self.config
        return matching_pursuit(
            x - self.b_dec,
            self.W_dec,
            given.k if n_steps is None else n_steps,
            residual_threshold=(
                given.residual_threshold if residual_threshold is None else residual_threshold
            ),
        )

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        check_rows(x, self.d_in)
        return merged(self.pursue(x), self.d_sae)

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        pursuit = self.pursue(batch.x, residual_threshold=0.0)
        codes = merged(pursuit, self.d_sae)
        # The residual is the reconstruction's error x - x_hat, so decoding is not needed.
        error = pursuit.residual.pow(2).sum(-1).mean()
        done = TrainingPass(codes, batch.x - pursuit.residual, error)
        if context.dead is not None:
            missed = (pursuit.residual.detach() @ self.W_enc).to(pursuit.values.dtype)
            add_aux_k(done, self, batch.x, context, lambda dead, n: among(top_k, missed, dead, n))
        return done

    @override
    def fused_rule(self) -> FusedRule:
        aux = self.config.aux_rule(self.d_out)
        return FusedRule(self.config.k, aux=aux, centres=False, pursues=True)

    @override
    def linear_codes(self, x: Float[Tensor, "batch d_in"], codes: SparseCodes) -> LinearCodes:
        pursuit = self.pursue(x.to(self.W_dec.dtype))
        atoms, b_dec = self.W_dec.to(x.dtype), self.b_dec.to(x.dtype)
        rows, latents, encoders = [], [], []
        for row, (values, indices) in enumerate(zip(pursuit.values, pursuit.indices, strict=True)):
            D = atoms[indices[values != 0]]
            latent, member = indices[values != 0].unique(return_inverse=True)
            below = torch.eye(len(D), dtype=x.dtype, device=x.device) + (D @ D.T).tril(-1)
            steps = torch.linalg.solve_triangular(below, D, upper=False, unitriangular=True)
            encoders.append(steps.new_zeros(len(latent), x.shape[1]).index_add(0, member, steps))
            latents.append(latent)
            rows.append(torch.full_like(latent, row))
        row, latent, encoder = torch.cat(rows), torch.cat(latents), torch.cat(encoders)
        constant = -encoder @ b_dec
        return LinearCodes(row, latent, (encoder * x[row]).sum(-1) + constant, encoder, constant)

    @override
    def foreign_rule(self) -> dict[str, Any] | None:
        # Other tools' thresholds are compared after a step, so that no row takes none.
        if self.config.residual_threshold:
            return None
        return {
            "steps": self.config.k,
            "W_enc": self.W_enc.contiguous(),
            "b_enc": self.W_dec.new_zeros(self.d_sae),
        }

    @override
    def foreign_weights(self, foreign: ForeignSAE) -> dict[str, Tensor]:
        return {}

    @override
    def restore_norms(self) -> None:
        # Codes are projections on the atoms as they are.
        normalise_rows(self.W_dec)

    @override
    @torch.no_grad()
    def initialise(self, rows: Float[Tensor, "n d_in"]) -> None:
        self.b_dec.copy_(geometric_median(rows))

    @override
    @torch.no_grad()
    def rescale(self, scale: float, target_scale: float | None = None) -> None:
        # The threshold of inference is in raw units already.
        self.b_dec.div_(scale)

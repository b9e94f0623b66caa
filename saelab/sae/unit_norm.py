"""SAEs with one affine encoder and unit-norm atoms: what the TopK family shares."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override

from saelab.kernels import affine_codes
from saelab.kernels.rules import FusedRule
from saelab.pursuit.select import Rule, among
from saelab.sae.affine import AffineEncoder
from saelab.sae.aux_k import AuxKConfigT, add_aux_k
from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.sae.dictionary import geometric_median, move_norms, random_unit_rows
from saelab.sae.losses import squared_error
from saelab.sae.transcoder import shrink_codes
from saelab.types import ActivationBatch, SparseCodes, TrainingPass

Select = Callable[[Tensor], SparseCodes]
"""From pre-activations to codes."""


class AbstractUnitNormSAE(AbstractSAE[AuxKConfigT]):
    """a = (x - b_dec) @ W_enc + b_enc and x_hat = z @ W_dec + b_dec, with unit rows in W_dec.

    The encoder starts as the decoder's transpose and b_dec at the data's geometric median (arXiv
    2406.04093, appendix A.1); each variant has its own rule from a to z. Transcoders subtract b_in
    instead of b_dec; with `centres` false nothing is subtracted.
    """

    unit_atoms = True

    def __init__(self, d_in: int, d_sae: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        atoms = random_unit_rows(d_sae, d_in, generator)
        self.W_dec = nn.Parameter(atoms)
        self.W_enc = nn.Parameter(atoms.T.contiguous().clone())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def centres(self) -> bool:
        """Whether the encoder subtracts the input bias."""
        return True

    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Pre-activations (x - b_dec) @ W_enc + b_enc, in float32, for the selection."""
        return self.affine_encoder().pre_activations(x)

    def choose(
        self, x: Float[Tensor, "batch d_in"], select: Select
    ) -> tuple[Float[Tensor, "batch d_sae"], SparseCodes]:
        """All pre-activations, without a graph, and the codes that `select` keeps, with one."""
        with torch.no_grad():
            pre_acts = self.pre_activations(x)
            codes = select(pre_acts)
        return pre_acts, self.differentiable(codes, x)

    def kept(
        self, rule: Rule, pre_acts: Float[Tensor, "batch d_sae"], k: float | int
    ) -> SparseCodes:
        """The codes that `rule` keeps with k per row, among all processes' latents."""
        if self.shard is None:
            return rule(pre_acts, k)
        most = self.shard.candidates(k, over_batch=self.config.sparsity.per == "batch")
        return self.shard.largest_of_all(rule(pre_acts, most), k)

    def selected_pass(
        self,
        batch: ActivationBatch,
        pre_acts: Float[Tensor, "batch d_sae"],
        codes: SparseCodes,
        context: LossContext,
        rule: Rule,
    ) -> TrainingPass:
        """The training pass of a plain reconstruction; AuxK chooses dead latents by `rule`."""
        x_hat = self.decode(codes, batch.x)
        done = TrainingPass(codes, x_hat, squared_error(batch.wanted, x_hat))

        def dead_codes(dead: Bool[Tensor, " d_sae"], n: int) -> SparseCodes:
            return self.differentiable(among(rule, pre_acts, dead, n, self.shard), batch.x)

        add_aux_k(done, self, batch.wanted, context, dead_codes)
        return done

    def differentiable(self, codes: SparseCodes, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        """Codes chosen without a graph, now with gradients to the encoder and the input bias."""
        return affine_codes(codes, x, self.W_enc, self.b_enc, self.affine_encoder().centre)

    def selected_rule(self, k: float | int, **rest: Any) -> FusedRule:  # noqa: ANN401
        """The fused rule of `selected_pass` with k latents per row; `rest` are its other fields."""
        return FusedRule(k=k, aux=self.config.aux_rule(self.d_out), centres=self.centres, **rest)

    @override
    def affine_encoder(self) -> AffineEncoder:
        return AffineEncoder(self.W_enc, self.b_enc, self.encoder_bias if self.centres else None)

    @override
    @torch.no_grad()
    def restore_norms(self) -> None:
        move_norms(self.W_dec, self.W_enc, self.b_enc)

    @override
    @torch.no_grad()
    def initialise(self, rows: Float[Tensor, "n d_in"]) -> None:
        center = geometric_median(rows)
        self.input_bias.copy_(center)
        if not self.centres:
            self.b_enc.copy_(-center @ self.W_enc)

    @override
    def rescale(self, scale: float, target_scale: float | None = None) -> None:
        shrink_codes(self, (self.b_enc, self.b_dec), scale, target_scale)

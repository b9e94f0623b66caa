"""Cross-layer transcoder: latents of every layer that write to the MLP outputs of all later layers.

Layer l's latents read the MLP input of layer l, and the MLP output of layer t is reconstructed from
the latents of all layers up to t (transformer-circuits.pub/2025/attribution-graphs/methods.html):

    z_l = select((x_l - b_l) @ W_enc_l + c_l),    y_t = sum over l <= t of z_l @ W_dec_(l, t) + b_t

Its rows are those of a joint site, `A+B+...`: what all layers' MLPs read, side by side, and what
they write as the target. Latents are numbered layer by layer, d_sae / n of each of n layers.

Decoders are free, tied per source (a latent writes one direction to all later layers), or tied per
target (latent i of every layer writes the same direction to a layer); tied ones are as small as
those of transcoders of single layers. Free or tied per source, the codes are inverted (sorted by
latent) once for all targets: free decoder rows hold all targets side by side, and with rows tied
per source the gradients of later targets are summed first. Tied per target, a code is there once a
target.

On the tiny model (4 layers, 2,048 latents, 48 active, 400,000 tokens, one seed) it is hardly
better than BatchTopK transcoders of single layers: FVU 0.029 against 0.034 and KL 0.21 against 0.23
with all MLPs replaced, but 98.6 % of the cross-entropy recovered either way. Rows tied per source
recover 86 %. Circuits of five prompts, pruned alike, have as many nodes (57 on average); errors
have 26 % of the leaves' influence against 30 %.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from saelab.config import UsageError
from saelab.pursuit.select import batch_top_k, top_k
from saelab.sae.aux_k import AuxKConfig
from saelab.sae.base import AbstractSAE
from saelab.sae.checks import check_k, check_rows, check_widths
from saelab.sae.clt_codes import top_k_by_layer
from saelab.sae.clt_layers import AbstractLayers
from saelab.sae.context import LossContext
from saelab.sae.dictionary import move_norms
from saelab.sae.jump import INITIAL_THRESHOLD, WITHOUT_TARGET, Heaviside, jump_codes, start_of
from saelab.sae.sparsity import Sparsity
from saelab.types import ActivationBatch, SparseCodes, TrainingPass

L0_WARMUP = 0.1
"""The share of the run over which JumpReLU's penalty rises."""


class CLTConfig(AuxKConfig):
    """Cross-layer transcoder: each layer's latents write to all later MLPs (2025).

    --site A+B+... are the inputs of MLPs, in order, and --target-site their outputs; of all of a
    model's, the recipe clt of `saelab train sweep` names them. Two layers:

        saelab harvest --model tiny --text tiny --n-tokens 500000 --out activations_cache/mlps
            --sites blocks.0.mlp.hook_in blocks.1.mlp.hook_in blocks.0.hook_mlp_out
            blocks.1.hook_mlp_out
        saelab train clt --activations activations_cache/mlps --d-sae 2048 --n-tokens 4000000
            --site blocks.0.mlp.hook_in+blocks.1.mlp.hook_in
            --target-site blocks.0.hook_mlp_out+blocks.1.hook_mlp_out --out runs/clt
    """

    variant: Literal["clt"] = "clt"
    selection: Literal["batch-topk", "topk", "jumprelu"] = "batch-topk"
    """What keeps latents few: the batch's largest of all layers (BatchTopK, one threshold at
    inference), k / n largest of each of n layers (TopK), or each latent's own learned threshold
    (JumpReLU, arXiv 2407.14435)."""
    k: float | int = Field(default=32, gt=0)
    """Latents active per token over all layers; on average with batch-topk, as a target with
    jumprelu."""
    decoders: Literal["free", "tied-source", "tied-target"] = "free"
    """Whether a latent has a decoder row for every later layer, one for all of them, or shares
    those of each layer with the latents of its number in earlier layers."""
    l0_coefficient: float = Field(default=10.0, ge=0)
    """With jumprelu: weight of the penalty (L0 / k - 1)^2, which rises over the first tenth."""
    widths: tuple[int, ...] = ()
    """Widths of the sites; training takes them from the store. Leave it out."""

    @property
    @override
    def joint_problem(self) -> None:
        return None

    @property
    @override
    def joint_target(self) -> bool:
        return True

    @override
    def at_widths(self, widths: Sequence[int]) -> "CLTConfig":
        check_widths(self.widths, tuple(widths))
        return self.model_copy(update={"widths": tuple(widths)})

    @property
    def n_layers(self) -> int:
        """Number of sites that are read."""
        return max(1, len(self.widths))

    @property
    @override
    def sparsity(self) -> Sparsity:
        rules: dict[str, Any] = {"topk": "row", "batch-topk": "batch", "jumprelu": "penalty"}
        return Sparsity(rules[self.selection], self.k)

    @override
    def check(self) -> None:
        check_k(self.k, self.d_sae)
        n = self.n_layers
        if len(set(self.widths)) > 1:
            raise UsageError(f"widths={self.widths} must be equal: an MLP reads what it adds to.")
        if self.d_sae % n:
            raise UsageError(f"d_sae={self.d_sae} is shared by {n} layers; give a multiple of {n}.")
        usual = type(self).model_fields["l0_coefficient"].default
        if self.selection != "jumprelu" and self.l0_coefficient != usual:
            raise UsageError(
                f"l0_coefficient={self.l0_coefficient:g} is for selection jumprelu, and this one "
                f"is {self.selection}; leave it out."
            )
        if self.selection == "topk" and self.k % n:
            raise UsageError(f"k={self.k:g} is shared by {n} layers; give a multiple of {n}.")

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "CLT":
        self.check()
        if self.widths and sum(self.widths) != d_in:
            raise UsageError(f"widths={self.widths} do not sum to the rows' {d_in} numbers.")
        return CLT(self, d_in, generator)


class CLT(AbstractLayers[CLTConfig]):
    """The rules by which its latents are kept, in training and at inference."""

    def __init__(
        self, config: CLTConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(d_in // config.n_layers, config.d_sae, config.k, generator)
        self.config, self.n_layers, self.decoders = config, config.n_layers, config.decoders
        self.layer_k = int(config.k) // self.n_layers if config.selection == "topk" else None
        self.W_dec = nn.Parameter(self.rows_of(self.W_dec.detach()))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        if config.selection == "topk":
            self.threshold.zero_()
        elif config.selection == "jumprelu":
            del self.threshold
            self.threshold = nn.Parameter(torch.full((config.d_sae,), INITIAL_THRESHOLD))
        self.bandwidth = WITHOUT_TARGET

    @property
    @override
    def widths(self) -> tuple[int, ...]:
        return self.config.widths or (self.d_in,)

    @property
    def jumps(self) -> bool:
        """Whether each latent has its own threshold."""
        return self.config.selection == "jumprelu"

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        if self.config.selection != "topk":
            return super().encode(x)
        check_rows(x, self.d_in)
        return self.codes_from(self.pre_activations(x))

    @override
    def codes_from(self, pre_acts: Float[Tensor, "batch d_sae"]) -> SparseCodes:
        if self.config.selection != "topk":
            return super().codes_from(pre_acts)
        return self._top_k(pre_acts, self.k)

    def _top_k(self, pre_acts: Float[Tensor, "batch d_sae"], k: float | int) -> SparseCodes:
        return top_k_by_layer(pre_acts, int(k) // self.n_layers, self.n_layers)

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        if self.jumps:
            return self._jump_pass(batch, context)
        rule = batch_top_k if self.config.selection == "batch-topk" else self._top_k
        pre_acts, codes = self.choose(batch.x, lambda a: rule(a, self.k))
        return self.selected_pass(batch, pre_acts, codes, context, top_k)

    def _jump_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        pre_acts = self.pre_activations(batch.x)
        codes = jump_codes(pre_acts, self.threshold, self.bandwidth)
        on: Tensor = Heaviside.apply(pre_acts, self.threshold, self.bandwidth)
        l0, weight = on.sum(dim=1).mean(), self.config.l0_coefficient * context.risen(L0_WARMUP)
        done = self.selected_pass(batch, pre_acts.detach(), codes, context, top_k)
        return replace(
            done, parts=done.parts | {"l0_penalty": (weight, (l0 / self.k - 1).square())}
        )

    @override
    def observe(self, codes: SparseCodes) -> None:
        if self.config.selection == "batch-topk":
            super().observe(codes)

    @override
    def calibrate(self, rows: Float[Tensor, "n d_in"]) -> None:
        if self.config.selection == "batch-topk":
            super().calibrate(rows)

    @override
    def take_threshold(self, source: AbstractSAE, rows: Float[Tensor, "n d_in"]) -> None:
        if self.config.selection == "batch-topk":
            super().take_threshold(source, rows)
        elif self.jumps:
            self.threshold.fill_(start_of(self.pre_activations, rows, self.k)[0])

    @override
    @torch.no_grad()
    def initialise(self, rows: Float[Tensor, "n d_in"]) -> None:
        super().initialise(rows)
        if self.jumps:
            start, self.bandwidth = start_of(self.pre_activations, rows, self.k)
            self.threshold.fill_(start)

    @override
    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        self.threshold.clamp_min_(0)

    @override
    @torch.no_grad()
    def restore_norms(self) -> None:
        own = (self.threshold,) if self.jumps else ()
        move_norms(self.W_dec, self.W_enc, self.b_enc, *own)

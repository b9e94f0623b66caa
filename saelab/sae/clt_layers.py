"""What a cross-layer transcoder reads and writes at each layer, whatever keeps its latents few."""

import abc
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from saelab.config import UsageError
from saelab.kernels import affine_codes, sparse_decode
from saelab.sae.aux_k import AuxKConfigT
from saelab.sae.batch_selection import AbstractBatchSelectionSAE
from saelab.sae.clt_codes import by_source, by_target
from saelab.sae.dictionary import random_unit_rows
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.targets import LayerTranscoder, TargetBlock
from saelab.types import SparseCodes

Decoders = Literal["free", "tied-source", "tied-target"]


class AbstractLayers(AbstractBatchSelectionSAE[AuxKConfigT], abc.ABC):
    """W_enc is `[d, d_sae]`: each column reads the d numbers of its own layer.

    W_dec is `[d_sae, n * d]`, zero before a latent's own layer, or `[d_sae, d]` if tied: row i is
    then what latent i writes to all layers from its own on, or what it and the latents of its
    number in earlier layers write to its own.

    Attributes:
        n_layers: number of sites that are read, and of those that are written.
        decoders: how rows of the decoder are shared.
        layer_k: latents that each layer keeps at inference; None: those above the threshold.
    """

    n_layers: int
    decoders: Decoders
    layer_k: int | None

    @property
    @override
    def d_out(self) -> int:
        return len(self.b_dec)

    @property
    def tied(self) -> bool:
        """Whether there is one decoder row for each latent, not one for each layer it writes."""
        return self.decoders != "free"

    def rows_of(self, atoms: Float[Tensor, "d_sae d"]) -> Float[Tensor, "d_sae d_row"]:
        """Decoder rows that write these atoms to each latent's own layer; if tied, to all."""
        n = self.n_layers
        if self.tied or n == 1:
            return atoms
        rows = atoms.new_zeros(n, len(atoms) // n, n, atoms.shape[1])
        for layer, own in enumerate(atoms.chunk(n)):
            rows[layer, :, layer] = own
        return rows.view(len(atoms), -1)

    @override
    def target_rows(
        self, d_out: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "d_sae d_row"]:
        return self.rows_of(random_unit_rows(self.d_sae, d_out // self.n_layers, generator))

    @override
    def blocks(
        self, rows: Float[Tensor, "row d_in"], targets: Float[Tensor, "row d_out"]
    ) -> Iterator[TargetBlock]:
        n = self.n_layers
        parts = (part.chunk(n, dim=1) for part in (rows, targets))
        columns, atoms = self.W_enc.chunk(n, dim=1), self.W_dec.chunk(n)
        for layer, (x, y) in enumerate(zip(*parts, strict=True)):
            own = atoms[layer] if self.tied else atoms[layer].chunk(n, dim=1)[layer]
            yield TargetBlock(x, y, own, columns[layer])

    @override
    @torch.no_grad()
    def read_sites_times(self, reads: Sequence[float], writes: Sequence[float]) -> None:
        if self.tied:
            raise UsageError("Decoder rows that layers share cannot be scaled for each.")
        n = self.n_layers
        for layer, (read, written) in enumerate(zip(reads, writes, strict=True)):
            self.W_enc.chunk(n, dim=1)[layer].div_(read)
            if self.b_in is not None:
                self.b_in.chunk(n)[layer].mul_(read)
            self.W_dec.chunk(n, dim=1)[layer].mul_(written)
            self.b_dec.chunk(n)[layer].mul_(written)

    @override
    def transcoders(self) -> tuple[LayerTranscoder, ...]:
        if not self.is_transcoder:  # a crosscoder, which no pass through the model computes
            return ()
        n, m = self.n_layers, self.d_sae // self.n_layers
        return tuple(self._transcoder(layer, slice(layer * m, layer * m + m)) for layer in range(n))

    def _transcoder(self, layer: int, own: slice) -> LayerTranscoder:
        n = self.n_layers
        plain = self.W_enc[:, own], self.b_enc[own], self.b_dec.chunk(n)[layer]
        atoms = self.W_dec.detach()
        written = {
            "free": atoms[own].chunk(n, dim=1)[layer:],
            "tied-source": (atoms[own],) * (n - layer),
            "tied-target": atoms.chunk(n)[layer:],
        }[self.decoders]
        W_enc, b_enc, b_dec, W_dec = (x.detach().cpu().float() for x in (*plain, written[0]))
        threshold = self.threshold.detach().cpu().expand(self.d_sae)[own]
        foreign = ForeignSAE(
            W_enc=W_enc,
            W_dec=W_dec,
            b_enc=b_enc,
            b_dec=b_dec,
            k=self.layer_k,
            threshold=None if self.layer_k else threshold,
            subtract_b_dec=False,
            transcoder=True,
            source="clt",
        )
        centre = self.input_bias.detach().chunk(n)[layer]
        return LayerTranscoder(own.start, foreign, centre, written[1:])

    def layer_of(self, latents: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The layer, from 0 on, whose site each latent reads."""
        return latents // (self.d_sae // self.n_layers)

    @override
    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        n = self.n_layers
        by_layer = (x - self.encoder_bias).view(len(x), n, -1).transpose(0, 1)
        columns = self.W_enc.view(len(self.W_enc), n, -1).transpose(0, 1)
        return torch.bmm(by_layer, columns).transpose(0, 1).flatten(1).float() + self.b_enc

    @override
    def differentiable(self, codes: SparseCodes, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        pairs = by_source(codes, self.n_layers)
        by_layer = (x - self.encoder_bias).view(len(pairs), -1)
        found = affine_codes(pairs, by_layer, self.W_enc, self.b_enc)
        assert found.offsets is not None
        starts = found.offsets[:: self.n_layers].contiguous()
        return SparseCodes(found.values, found.indices, codes.d_sae, starts)

    @override
    def written(self, codes: SparseCodes) -> Float[Tensor, "batch d_out"]:
        if not self.tied or self.n_layers == 1:
            return sparse_decode(codes, self.W_dec)
        if self.decoders == "tied-target":
            return sparse_decode(by_target(codes, self.n_layers), self.W_dec).view(len(codes), -1)
        by_layer = sparse_decode(by_source(codes, self.n_layers), self.W_dec)
        return by_layer.view(len(codes), self.n_layers, -1).cumsum(dim=1).flatten(1)

    @override
    def before_optimizer_step(self) -> None:
        if self.W_dec.grad is not None and not self.tied:
            blocks = self.W_dec.grad.view(self.n_layers, -1, self.n_layers, self.b_dec_width)
            blocks.mul_(self._later(blocks)[:, None, :, None])
        super().before_optimizer_step()

    @property
    def b_dec_width(self) -> int:
        """Width of one site that is written."""
        return len(self.b_dec) // self.n_layers

    def _later(self, like: Tensor) -> Bool[Tensor, "source target"]:
        n = self.n_layers
        return torch.ones(n, n, dtype=torch.bool, device=like.device).triu()

    @override
    def affine_encoder(  # pyrefly: ignore[bad-override]
        self,
    ) -> None:
        return None

    @override
    def fused_rule(self) -> str:
        return "its latents read several sites"

    @override
    def foreign_rule(self) -> dict[str, Any] | None:
        return None

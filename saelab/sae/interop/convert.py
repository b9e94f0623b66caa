"""Conversion between saelab's variants and the neutral form of other tools' files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.config import UsageError
from saelab.sae.affine import HALVES
from saelab.sae.base import AbstractSAE, AbstractSAEConfig
from saelab.sae.decoder import widens
from saelab.sae.interop.detect import read_foreign
from saelab.sae.interop.dictionary_learning_write import write_dictionary_learning
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.sae_lens_write import write_sae_lens
from saelab.sae.row_normalised import RowNormalised
from saelab.sae.transcoder import make_transcoder
from saelab.sae.variants import variants


def load_foreign_sae(path: str | Path) -> AbstractSAE:
    """The SAE that SAELens, Gemma Scope, dictionary_learning, sparsify or circuit-tracer wrote.

    It is on the CPU, in float32 and evaluation mode, and gives the codes and reconstructions that
    its own tool gives.

    Raises:
        UsageError: the file is damaged or of none of these tools, or saelab has no variant for its
            SAE.
    """
    return from_foreign(read_foreign(Path(path)))


def save_sae_lens(sae: AbstractSAE, directory: str | Path) -> None:
    """Write `sae` in the form that SAELens 6 loads (cfg.json and sae_weights.safetensors).

    Raises:
        UsageError: SAELens has no architecture for this SAE, or `directory` holds one already.
    """
    write_sae_lens(to_foreign(sae), Path(directory))


def save_dictionary_learning(sae: AbstractSAE, directory: str | Path) -> None:
    """Write `sae` in the form that dictionary_learning loads (config.json and ae.pt).

    Raises:
        UsageError: dictionary_learning has no class for this SAE, or `directory` holds one already.
    """
    write_dictionary_learning(to_foreign(sae), Path(directory))


def from_foreign(foreign: ForeignSAE, *, copied: bool = True) -> AbstractSAE:
    """The first variant that has the same codes: TopK, ..., standard, gated, else JumpReLU.

    Where rows are normalised, codes are in units of the row: the other tool's times s(x), see
    `saelab.sae.row_norm`.

    Its weights are copies, unless `copied` is false: then they are the foreign ones, and views of
    a large file stay so. W_enc and W_dec of 16 bits stay so where the variant widens them.

    Atoms need not be unit. An SAE that another tool trained with batch-level selection becomes
    BatchTopK or Matryoshka if all latents share one threshold, and JumpReLU (which differs in
    training only) if every latent has its own.

    Raises:
        UsageError: no variant has these codes.
    """
    if foreign.unscaled:
        raise UsageError(
            f"{foreign.source}: the SAE reads rows scaled to a mean norm of sqrt(d_in), but the "
            "file does not say their mean norm; `saelab import` measures it on the store."
        )
    sae = _without_weights(foreign)
    if not foreign.transcoder:
        encoder = sae.affine_encoder()
        if encoder is not None and encoder.centre is not None:
            foreign = foreign.reading(less_b_dec=True)
    tensors = _weights(sae, foreign)
    if copied:
        plain = torch.contiguous_format
        tensors = {name: tensor.clone(memory_format=plain) for name, tensor in tensors.items()}
    sae.load_state_dict(tensors, assign=True)
    if foreign.row_norm is not None:
        sae = RowNormalised(sae, foreign.row_norm)
    return sae.eval().requires_grad_(requires_grad=False)


def to_foreign(sae: AbstractSAE) -> ForeignSAE:
    """The neutral form of an SAE whose inference rule other tools have.

    Raises:
        UsageError: no other tool has its inference rule.
    """
    if isinstance(sae, RowNormalised):
        return replace(to_foreign(sae.inner), row_norm=sae.row_norm)
    rule, encoder = sae.foreign_rule(), sae.affine_encoder()
    if rule is None:
        raise UsageError(
            f"Other tools have no architecture for this {sae.config.variant} SAE; only TopK (also "
            "hierarchical and gradient), row-level AbsTopK, BatchTopK, Matryoshka, JumpReLU, "
            "standard, gated and (without --residual-threshold) matching-pursuit SAEs can be "
            "exported."
        )
    fields: dict[str, Any] = {"subtract_b_dec": True}
    if encoder is not None:
        centred = encoder.centre is not None and not sae.is_transcoder
        fields = {"W_enc": encoder.W_enc, "b_enc": encoder.b_enc, "subtract_b_dec": centred}
    fields |= {"W_dec": sae.W_dec, "b_dec": sae.b_dec, **rule}
    fields = {n: _plain(v) if isinstance(v, Tensor) else v for n, v in fields.items()}
    foreign = ForeignSAE(
        **fields,
        transcoder=sae.is_transcoder,
        W_skip=None if sae.W_skip is None else _plain(sae.W_skip),
        source="saelab",
    )
    if sae.b_in is None:
        return foreign
    # Other tools' transcoders subtract nothing from what they read.
    b_in = _plain(sae.b_in)
    if encoder is not None and encoder.centre is not None:
        foreign = foreign.with_products_plus(-foreign.read_of(b_in))
    if foreign.W_skip is not None:
        foreign = replace(foreign, b_dec=foreign.b_dec - b_in @ foreign.W_skip)
    return foreign


def _without_weights(foreign: ForeignSAE) -> AbstractSAE:
    """An SAE of the right variant and shapes, on the meta device."""
    config = _config_of(foreign)
    with torch.device("meta"):
        sae = config.build(foreign.d_in)
        if foreign.transcoder:
            make_transcoder(sae, foreign.d_out, skip=foreign.W_skip is not None)
    return sae


def _weights(sae: AbstractSAE, foreign: ForeignSAE) -> dict[str, Tensor]:
    tensors = sae.foreign_weights(foreign) | {"W_dec": foreign.W_dec, "b_dec": foreign.b_dec}
    if foreign.transcoder:
        tensors["b_in"] = torch.zeros(foreign.d_in)
    if foreign.W_skip is not None:
        tensors["W_skip"] = foreign.W_skip.float()
    if widens(sae):
        return tensors
    return {name: tensor.float() for name, tensor in tensors.items()}


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor if tensor.dtype in HALVES else tensor.float()


def _config_of(foreign: ForeignSAE) -> AbstractSAEConfig:
    for cls in variants().values():
        if (config := cls.of_foreign(foreign)) is not None:
            return config
    raise UsageError(f"{foreign.source}: no variant in saelab has codes such as these.")

"""Between the neutral form of other tools' files and saelab's variants."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from saelab.config import UsageError
from saelab.sae.abs_topk import AbsTopKConfig, BatchAbsTopK
from saelab.sae.base import AbstractSAE, AbstractSAEConfig
from saelab.sae.batch_selection import AbstractBatchSelectionSAE
from saelab.sae.batch_topk import BatchTopKConfig
from saelab.sae.gradient_topk import GradientTopKConfig
from saelab.sae.hierarchical_topk import HierarchicalTopKConfig
from saelab.sae.interop.detect import read_foreign
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.sae_lens_write import write_sae_lens
from saelab.sae.jumprelu import JumpReLU, JumpReLUConfig
from saelab.sae.matryoshka import Matryoshka, MatryoshkaConfig, group_prefixes
from saelab.sae.topk import TopKConfig
from saelab.sae.transcoder import make_transcoder


def load_foreign_sae(path: str | Path) -> AbstractSAE:
    """The SAE that SAELens, Gemma Scope, dictionary_learning or sparsify wrote at `path`.

    On the CPU in float32 and evaluation mode, with the codes and reconstructions of its own tool.

    Raises:
        UsageError: the file is of none of these, damaged, or holds what saelab has no variant for.
    """
    return from_foreign(read_foreign(Path(path)))


def save_sae_lens(sae: AbstractSAE, directory: str | Path) -> None:
    """Write `sae` in the form that SAELens 6 loads (cfg.json and sae_weights.safetensors).

    Raises:
        UsageError: SAELens has no architecture for this SAE, or `directory` holds one already.
    """
    write_sae_lens(to_foreign(sae), Path(directory))


def from_foreign(foreign: ForeignSAE) -> AbstractSAE:
    """The variant with the same codes: TopK, AbsTopK, BatchTopK, Matryoshka, else JumpReLU.

    Atoms need not be unit. Batch-level SAEs of other tools become BatchTopK or Matryoshka where
    they have one threshold for all latents, and JumpReLU (which differs in training only) where
    every latent has its own.
    """
    one = _one_threshold(foreign)
    config = _config_of(foreign, one)
    sae = config.build(foreign.d_in)
    b_enc = foreign.b_enc
    if foreign.transcoder:
        make_transcoder(sae, foreign.d_out, skip=foreign.W_skip is not None)
    elif not isinstance(sae, JumpReLU) and not foreign.subtract_b_dec:
        # x @ W + b = (x - b_dec) @ W + (b + b_dec @ W), and saelab's TopK family subtracts.
        b_enc = b_enc + foreign.b_dec @ foreign.W_enc
    tensors = {
        "W_enc": foreign.W_enc,
        "W_dec": foreign.W_dec,
        "b_enc": b_enc,
        "b_dec": foreign.b_dec,
    }
    if foreign.transcoder:
        tensors["b_in"] = torch.zeros(foreign.d_in)
    if foreign.W_skip is not None:
        tensors["W_skip"] = foreign.W_skip
    if isinstance(sae, JumpReLU) and foreign.threshold is not None:
        tensors["threshold"] = foreign.threshold
    elif isinstance(sae, AbstractBatchSelectionSAE) and one is not None:
        tensors["threshold"] = one
    sae.load_state_dict(tensors)
    return sae.eval().requires_grad_(requires_grad=False)


def to_foreign(sae: AbstractSAE) -> ForeignSAE:
    """The neutral form of an SAE whose inference other tools know.

    Raises:
        UsageError: they do not know it.
    """
    config = sae.config
    if isinstance(sae, JumpReLU):
        rule = {"threshold": sae.threshold, "subtract_b_dec": sae.config.subtract_b_dec}
    elif isinstance(sae, AbstractBatchSelectionSAE) and not isinstance(sae, BatchAbsTopK):
        rule = {"threshold": sae.threshold.expand(sae.d_sae), "batch_k": sae.k}
        if isinstance(sae, Matryoshka) and not sae.config.random_prefixes:
            rule["prefixes"] = group_prefixes(sae.config.fractions, sae.d_sae)
    elif isinstance(config, TopKConfig | HierarchicalTopKConfig | GradientTopKConfig):
        rule = {"k": config.k}
    elif isinstance(config, AbsTopKConfig) and config.selection == "row":
        rule = {"k": config.k, "signed": True}
    else:
        name = config.model_dump()["variant"]
        raise UsageError(
            f"SAELens has no architecture for this {name} SAE; only TopK (also hierarchical and "
            "gradient), row-level AbsTopK, BatchTopK, Matryoshka and JumpReLU can be exported."
        )
    weights = {name: value.detach().cpu().float().clone() for name, value in _weights(sae).items()}
    if sae.is_transcoder:
        rule |= {"subtract_b_dec": False, "transcoder": True}
    rule = {n: v.detach().cpu().clone() if isinstance(v, Tensor) else v for n, v in rule.items()}
    return ForeignSAE(**{"subtract_b_dec": True, "source": "saelab", **weights, **rule})


def _weights(sae: AbstractSAE) -> dict[str, Tensor]:
    state = sae.state_dict()
    weights = {name: state[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    if sae.b_in is None:
        return weights
    # Other tools' transcoders subtract nothing from what they read.
    if not isinstance(sae, JumpReLU) or sae.centres:
        weights["b_enc"] = weights["b_enc"] - state["b_in"] @ weights["W_enc"]
    if sae.W_skip is not None:
        weights["b_dec"] = weights["b_dec"] - state["b_in"] @ state["W_skip"]
        weights["W_skip"] = state["W_skip"]
    return weights


def _one_threshold(foreign: ForeignSAE) -> Tensor | None:
    """The threshold that all latents of a batch-level SAE share, if they do."""
    threshold = foreign.threshold
    if threshold is None or foreign.batch_k is None or not foreign.subtract_b_dec:
        return None
    return threshold[0].clone() if bool((threshold == threshold[0]).all()) else None


def _config_of(foreign: ForeignSAE, one: Tensor | None) -> AbstractSAEConfig:
    d_sae = foreign.d_sae
    if foreign.k is not None:
        cls = AbsTopKConfig if foreign.signed else TopKConfig
        return cls(d_sae=d_sae, k=foreign.k)
    if foreign.signed:
        raise UsageError(
            f"{foreign.source}: signed codes with thresholds have no variant in saelab."
        )
    if one is None or foreign.batch_k is None:
        subtract = foreign.subtract_b_dec
        return JumpReLUConfig(d_sae=d_sae, k=foreign.batch_k, subtract_b_dec=subtract)
    if foreign.prefixes is None:
        return BatchTopKConfig(d_sae=d_sae, k=foreign.batch_k)
    sizes = torch.tensor([b - a for a, b in pairwise((0, *foreign.prefixes))])
    return MatryoshkaConfig(
        d_sae=d_sae, k=foreign.batch_k, fractions=tuple((sizes.double() / d_sae).tolist())
    )

"""Which SAEs have a fused step, and the mathematics of each."""

from saelab.config import UsageError
from saelab.kernels.cuda import MAX_K
from saelab.kernels.triton_aux import AuxRules
from saelab.kernels.triton_jump import JumpRules
from saelab.kernels.triton_rules import AdamRules, Rules
from saelab.sae.abs_topk import AbsTopK, BatchAbsTopK
from saelab.sae.aux_k import AuxKConfig
from saelab.sae.base import AbstractSAE
from saelab.sae.batch_topk import BatchTopK
from saelab.sae.gradient_topk import GradientTopK
from saelab.sae.hierarchical_topk import HierarchicalTopK
from saelab.sae.jumprelu import JumpReLU
from saelab.sae.matryoshka import Matryoshka
from saelab.sae.topk import WIDER, TopK

ROWS = (TopK, AbsTopK, HierarchicalTopK, GradientTopK)
"""The SAEs that choose k of each row."""
OVER_BATCH = (BatchTopK, BatchAbsTopK, Matryoshka)
"""The SAEs that choose over a whole batch."""


def fused_problem(sae: AbstractSAE) -> str | None:
    """Why an SAE has no fused step, as half a sentence; None if it has one."""
    if sae.is_transcoder:
        return "it reconstructs what it reads, and this is a transcoder"
    if isinstance(sae, (*OVER_BATCH, JumpReLU)):
        return None
    if not isinstance(sae, ROWS):
        known = "TopK, AbsTopK, BatchTopK, Matryoshka, HierarchicalTopK, JumpReLU and gradient SAEs"
        return f"only {known} have one, and this is a {type(sae).__name__}"
    if sae.config.k > MAX_K:
        return f"k={sae.config.k} is above {MAX_K}, the most that it can select"
    if not _wider(sae):
        return None
    k, widest = _budgets(sae)
    if k == widest:
        return f"k={k} is all its latents, and Multi-TopK's second reconstruction has no more"
    if widest > MAX_K:
        return f"Multi-TopK's second reconstruction has {widest} latents, and {MAX_K} is the most"
    return None


def _groups(sae: AbstractSAE) -> tuple[int, float]:
    """How many errors of a row make the loss, and the share of each."""
    if _wider(sae):
        return 2, 1.0
    if isinstance(sae, HierarchicalTopK):
        n = len(_budgets(sae))
        return n, 1 / n
    if not isinstance(sae, Matryoshka):
        return 1, 1.0
    n = sae.config.random_prefixes or len(sae.config.fractions)
    return n, 1 / n if sae.config.prefix_loss == "mean" else 1.0


def _budgets(sae: AbstractSAE) -> tuple[int, ...]:
    if isinstance(sae, TopK) and _wider(sae):
        return sae.config.k, min(WIDER * sae.config.k, sae.d_sae)
    if not isinstance(sae, HierarchicalTopK):
        return ()
    return sae.config.budgets or tuple(range(1, sae.config.k + 1))


def _wider(sae: AbstractSAE) -> float:
    """The weight of Multi-TopK's second reconstruction."""
    return sae.config.multi_k_coefficient if isinstance(sae, TopK) else 0.0


def _effect(sae: AbstractSAE) -> tuple[float, bool] | None:
    """The weight of the effect in a gradient SAE's score, and whether it counts alone."""
    if not isinstance(sae, GradientTopK):
        return None
    alone = sae.config.reading == "product"
    return (1.0 if alone else sae.config.beta), alone


def _aux_rules(sae: AbstractSAE[AuxKConfig], dead_after: int) -> AuxRules | None:
    k = sae.config.n_aux(sae.d_in)
    return AuxRules(k, sae.config.aux_coefficient, dead_after) if k else None


def _jump_rules(
    sae: JumpReLU, total_variance: float, clip_norm: float | None, adam: AdamRules
) -> Rules:
    return Rules(
        k=0,
        signed=False,
        total_variance=total_variance,
        adam=adam,
        clip_norm=clip_norm,
        jump=JumpRules(sae.config.bandwidth, sae.config.k),
        centres=sae.centres,
    )


def fused_rules(
    sae: AbstractSAE,
    total_variance: float,
    *,
    clip_norm: float | None,
    dead_after: int,
    adam: AdamRules,
    unrounded: bool = False,
) -> Rules:
    """What a fused step of this SAE does; see `FusedOptions`.

    Raises:
        UsageError: it is of another kind, its loss has a term that the kernels do not know, or k is
            too large.
    """
    if problem := fused_problem(sae):
        raise UsageError(f"This SAE has no fused step: {problem}.")
    if unrounded and not (isinstance(sae, TopK | AbsTopK) and not _wider(sae)):
        raise UsageError(
            "--ties float32 is for TopK and AbsTopK, which choose k of each row once, and "
            f"this is a {type(sae).__name__} SAE; leave it out, or take --precision float32."
        )
    if isinstance(sae, JumpReLU):
        return _jump_rules(sae, total_variance, clip_norm, adam)
    assert isinstance(sae, ROWS + OVER_BATCH)
    groups, share = _groups(sae)
    return Rules(
        k=sae.config.k,
        signed=isinstance(sae, AbsTopK | BatchAbsTopK),
        total_variance=total_variance,
        adam=adam,
        clip_norm=clip_norm,
        aux=_aux_rules(sae, dead_after),
        over_batch=isinstance(sae, OVER_BATCH),
        groups=groups,
        share=share,
        budgets=_budgets(sae),
        wider=_wider(sae),
        effect=_effect(sae),
        unrounded=unrounded,
    )

"""The codes of a fused step, one kind for each shape.

Each kind has `values` and `indices`, row after row; `residual`, which `decode` writes;
`error_rows`, the row of the residual that moves each code's atom; and `k`, the number of codes per
row if each row of codes has one row of errors, else 0. `select` chooses the codes from
`PreActs`. `decode` computes the errors, and the codes' gradient of a loss that is `factor / 2`
times the weighted squared errors. `invert` sorts the codes by latent. `kept` are values and indices
of the SAE's own codes.
"""

from jaxtyping import Float
from torch import Tensor

from saelab.kernels.exchange import LatentExchange
from saelab.kernels.rules import FusedRule
from saelab.kernels.torch.zipf import zipf_budgets
from saelab.kernels.triton.codes.jump import JumpCodes
from saelab.kernels.triton.codes.nested import NestedCodes
from saelab.kernels.triton.codes.pursuit import PursuitCodes
from saelab.kernels.triton.codes.ragged import Ragged
from saelab.kernels.triton.codes.rows import RowCodes
from saelab.kernels.triton.codes.shared import SharedCodes
from saelab.kernels.triton.codes.shared_errors import SharedErrors
from saelab.kernels.triton.select.batch import check_batch_select
from saelab.kernels.triton.select.effects import Effects
from saelab.kernels.triton.select.ties import TieFactors
from saelab.kernels.triton.step.rules import Rules

Codes = RowCodes | NestedCodes | Ragged | JumpCodes | SharedCodes | PursuitCodes


def empty_codes(
    x: Float[Tensor, "batch d_out"], factors: TieFactors, rules: Rules, exchange: LatentExchange
) -> Codes:
    """Memory for the codes of these rules; `factors` will make the pre-activations.

    Raises:
        UsageError: they are too many, see `check_batch_select`.
    """
    d_sae = len(factors.W)
    rule = rules.sae
    if exchange.shard is not None:
        if rule.jump is None:
            return SharedCodes.empty(x, d_sae, rule, exchange)
        return JumpCodes.empty(x, d_sae, rule.jump, SharedErrors.empty(x, rule, exchange))
    if rule.pursues:
        return PursuitCodes.empty(x, int(rule.k))
    if rule.budgets:
        return NestedCodes.empty(x, rule.budgets, rule.shares, n_kept=int(rule.k))
    if rule.jump is not None:
        return JumpCodes.empty(x, d_sae, rule.jump)
    if rule.over_batch:
        n, columns = int(rule.k * len(x)), None
        check_batch_select(len(x), d_sae, n)
        if rule.by_column:
            assert rule.usage is not None
            columns = zipf_budgets(d_sae, rule.usage, len(x))
        return Ragged.empty(
            x, n, rule.groups, signed=rule.signed, share=rule.share, columns=columns
        )
    effects = None if rule.effect is None else Effects.empty(x, d_sae, rule.effect)
    return RowCodes.empty(
        x,
        int(rule.k),
        signed=rule.signed,
        by_value=rule.by_value,
        falls=rule.falls,
        effects=effects,
        ties=factors if rules.ties == "float32" else None,
    )


def missed_by(codes: Codes, rule: FusedRule) -> Float[Tensor, "batch d_out"]:
    """The error of the SAE's own reconstruction, among all errors in the loss."""
    if isinstance(codes, PursuitCodes):
        return codes.missed
    groups, residual = rule.groups, codes.residual.residual
    if rule.wider:
        return residual[::2] - residual[1::2]
    last = residual[groups - 1 :: groups]
    return last if rule.share == 1 else last / rule.share

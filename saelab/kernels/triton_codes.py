"""The codes of a fused step, of whatever shape the SAE gives them.

Each kind has `values` and `indices`, row after row; `residual`, which `decode` writes;
`error_rows`, the row of the residual by which each code's atom is moved; and `k`, the codes of a
row where each row of codes has one row of errors, else 0. `select` chooses the codes from
pre-activations, and `decode` finds the errors and the gradient of the codes, of a loss that is
`factor / 2` times what counts of the squared errors.
"""

from jaxtyping import Float
from torch import Tensor

from saelab.kernels.triton_effects import Effects
from saelab.kernels.triton_jump import JumpCodes
from saelab.kernels.triton_nested import NestedCodes
from saelab.kernels.triton_ragged import Ragged
from saelab.kernels.triton_rows import RowCodes
from saelab.kernels.triton_rules import Rules
from saelab.kernels.triton_ties import Factors

Codes = RowCodes | NestedCodes | Ragged | JumpCodes


def empty_codes(x: Float[Tensor, "batch d_in"], factors: Factors, rules: Rules) -> Codes:
    """Room for the codes that these rules ask for; `factors` will make the pre-activations."""
    d_sae = len(factors.W)
    if rules.unrounded:
        return RowCodes.empty(x, int(rules.k), signed=rules.signed, factors=factors)
    if rules.budgets:
        return NestedCodes.empty(x, rules.budgets, rules.shares, n_kept=int(rules.k))
    if rules.jump is not None:
        return JumpCodes.empty(x, d_sae, rules.jump)
    if rules.over_batch:
        n = int(rules.k * len(x))
        return Ragged.empty(x, n, rules.groups, signed=rules.signed, share=rules.share)
    effects = None
    if rules.effect is not None:
        beta, alone = rules.effect
        effects = Effects.empty(x, d_sae, beta=beta, product_alone=alone)
    return RowCodes.empty(x, int(rules.k), signed=rules.signed, effects=effects)

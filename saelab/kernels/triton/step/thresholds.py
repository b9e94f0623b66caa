"""How a fused step learns JumpReLU's thresholds."""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.kernels.exchange import LatentExchange
from saelab.kernels.rules import JumpRules
from saelab.kernels.torch.pairs import LatentPairs
from saelab.kernels.triton.codes.jump import JumpCodes
from saelab.kernels.triton.weights import Parameter


class Thresholds:
    """The thresholds' gradient, and the penalty on L0 that it comes from.

    Attributes:
        penalty_weight: weight of the penalty in the loss; set it between steps.
        penalty: the last step's penalty, before its weight.
        gradient: the last step's gradient.
    """

    def __init__(self, learned: Parameter, rules: JumpRules, batch: int) -> None:
        self.learned, self.rules, self.batch = learned.value, rules, batch
        self.penalty_weight, self.penalty = (learned.value.new_zeros(()) for _ in range(2))
        self.gradient = torch.zeros_like(learned.value)

    def sum_window(self, codes: JumpCodes, pairs: LatentPairs, exchange: LatentExchange) -> None:
        """Compute the gradient from the codes of a batch."""
        window = codes.window_sums(pairs, self.learned)
        self.slope(window, pairs.offsets[-1].float(), exchange)

    def slope(
        self, window: Float[Tensor, "2 d_sae"], n_on: Float[Tensor, ""], exchange: LatentExchange
    ) -> None:
        """Compute the gradient (arXiv 2407.14435, eqs. 11 and 12) from sums over the window.

        Args:
            window: per latent, the sum of the codes' gradients in the window, and their number.
            n_on: number of the batch's entries that are on, among this process's latents.
            exchange: reaches the other processes.
        """
        l0 = exchange.mean(exchange.sum(n_on)) / self.batch
        window = exchange.mean(window)
        if self.rules.target is None:
            self.penalty.copy_(l0)
            slope = self.penalty_weight
        else:
            gap = l0 / self.rules.target - 1
            self.penalty.copy_(gap.square())
            slope = self.penalty_weight * 2 * gap / self.rules.target
        slopes, near = window
        toward = self.learned * slopes + slope / self.batch * near
        torch.div(toward, -self.rules.width, out=self.gradient)

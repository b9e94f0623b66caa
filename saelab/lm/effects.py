"""What directions at a site do to the residual stream and the logits, where it is proven."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.lm.direct_check import HasDirectPaths, direct_path_fault


@final
class LogitEffects:
    """The linear paths of a model, each used only after `direct_path_fault` has tried it."""

    def __init__(self, lm: HasDirectPaths) -> None:
        self._lm = lm
        self._faults: dict[str, str | None] = {}

    def why_not(self, hook: str) -> str | None:
        """Why directions at `hook` have no logit effects, as one sentence; None if they have.

        The first call for a site runs three short passes. They verify the path by a finite
        difference through the model's own path.
        """
        if hook not in self._faults:
            self._faults[hook] = self._lm.direct.fault(hook) or direct_path_fault(self._lm, hook)
        fault = self._faults[hook]
        return None if fault is None else f"{hook} has no logits in {self._lm.info.name}: {fault}."

    @torch.no_grad()
    def writes(
        self, hook: str, directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_model"] | None:
        """The vector that adding each direction at `hook` writes to the residual stream.

        Norms on the path are taken as linear at scale 1. None if `why_not` gives a reason.
        """
        if self.why_not(hook) is not None:
            return None
        return self._lm.direct.writes(hook, directions.to(self._lm.device))

    @torch.no_grad()
    def logits(
        self, hook: str, directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_vocab"] | None:
        """The change of the logits along the direct path when each direction at `hook` is added.

        Norms on the path (a post-norm, the final norm) are taken as linear at scale 1, a soft cap
        at its slope at 0, so values can be compared between directions of one site. They are
        centred over the vocabulary, since the softmax ignores the mean. None if `why_not` gives a
        reason.
        """
        written = self.writes(hook, directions)
        return None if written is None else self._lm.direct.logits(written)

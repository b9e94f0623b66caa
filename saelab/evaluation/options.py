"""What is measured, and on how much: the options of an evaluation."""

from typing import Annotated, Literal

from pydantic import Field

from saelab.config import Config, Heading

CONTEXTS = 32
"""Contexts of a batch whose size was not given."""


class EvaluateOptions(Config):
    """What `evaluate` measures; the defaults suit the shipped model on two CPU cores."""

    suite: Annotated[Literal["core", "full"], Heading("Measurements")] = "core"
    """core: reconstruction, downstream cost, known features, density, dictionary. full: also
    recovery against mean ablation, description length, uniformity, sparse probing, absorption and
    ablation sparsity, which take about as long again."""
    n_tokens: int = Field(default=50_000, gt=0)
    """Held-out tokens to measure on."""
    batch_size: int | None = Field(default=None, gt=0)
    """Contexts per forward pass; default: 32, or fewer where long ones would not fit in memory."""
    n_sample: int = Field(default=20_000, gt=0)
    """Of these tokens, how many description length, probing and absorption look at."""
    fvu_tolerance: float = Field(default=0.005, gt=0)
    """Description length: how much FVU the codes may lose by being rounded."""
    n_uniformity: int = Field(default=256, gt=0)
    """Uniformity: tokens, one a context, each of which needs its own gradient."""
    n_ablated_tokens: int = Field(default=48, gt=0)
    """Ablation sparsity: tokens, one a context, at which latents are ablated."""
    n_ablated_latents: int = Field(default=6, gt=0)
    """Ablation sparsity: latents ablated at each token, drawn from those active there."""
    reach: int = Field(default=16, gt=0)
    """Ablation sparsity: positions whose logits are compared, the token's own first."""
    seed: int = 0
    """Decides which tokens, latents and words are drawn."""

    @property
    def contexts(self) -> int:
        """Contexts per forward pass; 32 where it was not said or chosen."""
        return self.batch_size or CONTEXTS

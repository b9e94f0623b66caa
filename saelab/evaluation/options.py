"""The options of an evaluation: what is measured, and on how much."""

from typing import Annotated, Literal

from pydantic import Field

from saelab.config import Config, Heading

CONTEXTS = 32
"""Contexts per batch if no size was given."""


class EvaluateOptions(Config):
    """What `evaluate` measures; the defaults suit the shipped model on two CPU cores."""

    suite: Annotated[Literal["core", "full"], Heading("Measurements")] = "core"
    """core: reconstruction, downstream cost, known features, density, dictionary. full: also
    recovery against mean ablation, description length, uniformity, sparse probing, absorption and
    ablation sparsity, which take about the same time again."""
    n_tokens: int = Field(default=50_000, gt=0)
    """Held-out tokens to measure on."""
    batch_size: int | None = Field(default=None, gt=0)
    """Contexts per forward pass; default: 32, or fewer if 32 would not fit in memory."""
    n_sample: int = Field(default=20_000, gt=0)
    """How many of these tokens description length, probing and absorption read."""
    fvu_tolerance: float = Field(default=0.005, gt=0)
    """Description length: the FVU that rounding of the codes may add."""
    n_uniformity: int = Field(default=256, gt=0)
    """Uniformity: number of tokens, one per context; each needs its own gradient."""
    n_ablated_tokens: int = Field(default=48, gt=0)
    """Ablation sparsity: number of tokens, one per context, at which latents are ablated."""
    n_ablated_latents: int = Field(default=6, gt=0)
    """Ablation sparsity: number of latents ablated at each token, drawn from those active there."""
    reach: int = Field(default=16, gt=0)
    """Ablation sparsity: number of positions whose logits are compared, from the token's own on."""
    seed: int = 0
    """Decides which tokens, latents and words are drawn."""

    @property
    def contexts(self) -> int:
        """Contexts per forward pass; 32 if not given or chosen."""
        return self.batch_size or CONTEXTS

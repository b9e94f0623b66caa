"""Everything that decides a training run, except where it runs."""

from pathlib import Path

from pydantic import Field

from saelab.config import Config
from saelab.sae.variants import SAEConfig

REFERENCE_WIDTH = 2**14


class TrainConfig(Config):
    """One SAE trained on one site of one activation store."""

    sae: SAEConfig
    """The variant and its options."""
    activations: Path
    """The activation store that `saelab harvest` wrote."""
    site: str
    """Which of the store's hooks to train on, e.g. blocks.2.hook_resid_post."""
    n_tokens: int = Field(gt=0)
    """Tokens to train on, rounded up to whole batches; more than the store has means epochs."""
    batch_size: int = Field(default=4096, gt=0)
    """Tokens per step."""
    lr: float | None = Field(default=None, gt=0)
    """Adam's peak learning rate; default: 2e-4 / sqrt(d_sae / 2^14)."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up; default: 1000, or a twentieth of a shorter run."""
    decay_fraction: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps, at the end, over which the rate falls linearly to zero."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest global gradient norm; none: no clipping."""
    dead_after: int = Field(default=10_000_000, gt=0)
    """Tokens without firing after which a latent counts as dead."""
    seed: int = 0
    """Decides the initial weights and the order of the rows."""
    log_every: int = Field(default=50, gt=0)
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = Field(default=2_000, gt=0)
    """Steps between checkpoints, from which an interrupted run continues exactly."""

    @property
    def n_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return -(-self.n_tokens // self.batch_size)

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return 2e-4 / (self.sae.d_sae / REFERENCE_WIDTH) ** 0.5 if self.lr is None else self.lr

    @property
    def n_warmup(self) -> int:
        """Steps of warm-up."""
        return min(1000, self.n_steps // 20) if self.warmup_steps is None else self.warmup_steps

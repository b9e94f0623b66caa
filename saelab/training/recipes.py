"""Named runs: complete configurations whose docstrings say what to expect."""

from pathlib import Path

from saelab.sae.topk import TopKConfig
from saelab.training.config import TrainConfig

TINY_RESIDUAL = "blocks.2.hook_resid_post"
TINY_ATTENTION = "blocks.2.attn.hook_z"


def tiny_topk(activations: Path, site: str) -> TrainConfig:
    """A TopK SAE with 1,024 latents, 12 active, on one site of the tiny language model.

    Trained on 500,000 tokens in about half a minute of 2 CPU cores. Expected on held-out text: FVU
    0.02 at blocks.2.hook_resid_post and 0.09 at blocks.2.attn.hook_z, at L0 12.
    """
    return TrainConfig(
        sae=TopKConfig(d_sae=1024, k=12),
        activations=activations,
        site=site,
        n_tokens=1_200_000,
        batch_size=2048,
        lr=2e-3,
        dead_after=100_000,
    )

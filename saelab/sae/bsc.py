"""Binary sparse coding: a latent is on or off, and its size is always the same (1908.06843)."""

from typing import ClassVar, Literal

import torch
from typing_extensions import override

from saelab.sae.fixed_size import AbstractFixedSizeSAE
from saelab.sae.truncated import TruncatedConfig


class BSCConfig(TruncatedConfig):
    """BSC: latents on or off, fitted by truncated expectation maximisation (arXiv 1908.06843).

    No gradient fits it, so options of Adam and --budget are refused.

        saelab train bsc --activations activations_cache/tiny --site blocks.2.hook_resid_post
            --d-sae 1024 --n-tokens 4000000 --out runs/bsc
    """

    variant: Literal["bsc"] = "bsc"

    signs: ClassVar[tuple[int, ...]] = (1,)
    signed_codes: ClassVar[bool] = False

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "BSC":
        return BSC(self, d_in, generator)


class BSC(AbstractFixedSizeSAE[BSCConfig]):
    """x = b_dec + sum_h s_h size_h w_h + noise with s_h in {0, 1}."""

    @property
    @override
    def by_cosine(self) -> bool:
        return True

"""Ternary sparse coding: a latent is off, or on with either sign (arXiv 1908.06843)."""

from typing import ClassVar, Literal

import torch
from typing_extensions import override

from saelab.sae.fixed_size import AbstractFixedSizeSAE
from saelab.sae.truncated import TruncatedConfig


class TSCConfig(TruncatedConfig):
    """TSC: latents off, or on with either sign; truncated expectation maximisation (1908.06843).

    No gradient fits it, so options of Adam and --budget are refused.

        saelab train tsc --activations activations_cache/tiny --site blocks.2.hook_resid_post
            --d-sae 1024 --n-tokens 4000000 --out runs/tsc
    """

    variant: Literal["tsc"] = "tsc"

    signs: ClassVar[tuple[int, ...]] = (1, -1)
    signed_codes: ClassVar[bool] = True

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "TSC":
        return TSC(self, d_in, generator)


class TSC(AbstractFixedSizeSAE[TSCConfig]):
    """x = b_dec + sum_h s_h size_h w_h + noise with s_h in {-1, 0, 1}."""

    @property
    @override
    def by_cosine(self) -> bool:
        return False

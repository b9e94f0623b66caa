"""The options of an evaluation: what is measured, and on how much."""

from typing import Annotated, Literal

from pydantic import Field

from saelab.config import Config, Heading, UsageError
from saelab.pursuit.encoder_names import EncoderName

ENCODED = "encoder-"
"""What the directories of results with another encoder begin with."""
CONTEXTS = 32
"""Contexts per batch if no size was given."""


class EvaluateOptions(Config):
    """What `evaluate` measures; the defaults suit the shipped model on two CPU cores."""

    suite: Annotated[Literal["core", "full"], Heading("Measurements")] = "core"
    """core: reconstruction, downstream cost, known features, density, dictionary. full: also
    recovery against mean ablation, description length, uniformity, sparse probing, absorption and
    ablation sparsity, which take about the same time again."""
    metrics: tuple[str, ...] = ()
    """Measure these alone, such as reconstruction density, and what they are made of; default: the
    suite. Of very wide SAEs, dictionary, which compares all pairs of latents, takes longest."""
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
    encoder: Annotated[EncoderName | None, Heading("Another encoder")] = None
    """Encode by a search for codes in the SAE's dictionary, and compare the SAE's own encoder with
    it. omp: orthogonal matching pursuit; omp-RULE: the same, where a penalty decides which atom is
    next and when a token has enough (arXiv 2303.00844); mp: matching pursuit; lasso, l0, half,
    cel0: the code that minimises the squared error and an l1, l0, l1/2 or CEL0 penalty (arXiv
    2301.10002). It takes longer, so lower --n-tokens. Results are saved beside the SAE's own."""
    encoder_l0: float | None = Field(default=None, gt=0)
    """Its mean L0. Default: that of the SAE's own encoder; omp and mp then make as many latents
    active on each token as it does. The others' penalty is set so that 512 tokens have this L0."""
    encoder_weights: Literal["none", "firing"] = "none"
    """With omp-RULE: what it costs to choose a latent. firing: -log of how often the SAE's own
    encoder chooses it, so that rare latents must explain more."""

    def check(self) -> None:
        """Refuse options of an encoder where none is named.

        Raises:
            UsageError: the message names the option.
        """
        given = [("encoder-l0", self.encoder_l0), ("encoder-weights", self.encoder_weights)]
        for name, value in given:
            if self.encoder is None and value not in (None, "none"):
                raise UsageError(f"--{name} {value} belongs to another encoder; name one.")

    @property
    def samples(self) -> bool:
        """Whether rows are kept for measurements that read them again."""
        return self.suite == "full" or bool(self.metrics)

    @property
    def saved_as(self) -> str | None:
        """The name under which results with another encoder are saved; None for the SAE's own."""
        if self.encoder is None:
            return None
        at = "" if self.encoder_l0 is None else f"-at-{self.encoder_l0:g}"
        weighted = "" if self.encoder_weights == "none" else f"-{self.encoder_weights}"
        return f"{ENCODED}{self.encoder}{weighted}{at}"

    @property
    def contexts(self) -> int:
        """Contexts per forward pass; 32 if not given or chosen."""
        return self.batch_size or CONTEXTS

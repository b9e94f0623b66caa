"""A run's SAE with another encoder, set on some rows of what is evaluated."""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activations.corpus import Corpus, tokens_within
from saelab.config import UsageError
from saelab.console import told_if_slow
from saelab.evaluation.options import EvaluateOptions
from saelab.host.host import Host
from saelab.host.text import stream
from saelab.sae.base import AbstractSAE
from saelab.sae.with_encoder import CALIBRATION_ROWS, WithEncoder, with_encoder

Rows = Float[Tensor, "row _"]


def with_another(
    sae: AbstractSAE, options: EvaluateOptions, x: Rows, target: Rows | None
) -> WithEncoder:
    """`sae` with the encoder that the options name.

    Raises:
        UsageError: see `with_encoder`.
    """
    assert options.encoder is not None
    with told_if_slow(f"Setting {options.encoder} to an L0 on {len(x)} tokens ..."):
        return with_encoder(
            sae,
            options.encoder,
            x,
            target,
            l0=options.encoder_l0,
            weights=options.encoder_weights,
        )


def sample_rows(host: Host, corpus: Corpus, options: EvaluateOptions) -> tuple[Rows, Rows | None]:
    """About 512 random rows of what will be evaluated, and what a transcoder should make of them.

    It costs a pass of the model up to the sites.

    Raises:
        UsageError: the text has no rows.
    """
    draw = torch.Generator().manual_seed(options.seed)
    share = CALIBRATION_ROWS / min(options.n_tokens, tokens_within(corpus, options.n_tokens) or 1)
    x, targets = [], []
    for batch in stream(host, corpus, n_tokens=options.n_tokens, batch_size=options.contexts):
        kept = (torch.rand(len(batch.x), generator=draw) < share).to(batch.x.device)
        x.append(batch.x[kept])
        targets += [] if batch.target is None else [batch.target[kept]]
    if not sum(map(len, x)):
        raise UsageError("The held-out text has no tokens to evaluate on; give more text.")
    return torch.cat(x), torch.cat(targets) if targets else None

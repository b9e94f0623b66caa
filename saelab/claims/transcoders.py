"""Transcoders: as faithful as SAEs (arXiv 2406.11944), and more so with a skip (2501.18823)."""

import torch

from saelab.claims.claim import Claim
from saelab.claims.measures import fvu
from saelab.claims.outcome import Outcome, over_seeds, ratios
from saelab.claims.setting import Setting
from saelab.training.recipes import transcoders

Values = dict[str, list[float]]


def _written(setting: Setting) -> tuple[Values, Values]:
    return setting.subject.once(("transcoders", setting.n_seeds), lambda: _write(setting))


def _write(setting: Setting) -> tuple[Values, Values]:
    """FVU, and the share of the MLP's nats recovered, of each kind in the place of its output."""
    subject = setting.subject
    inside, out = subject.sites.mlp_in, subject.sites.mlp_out
    text = subject.held_out(inside, out)
    recipe = transcoders(subject.store(inside, out), inside, out)
    saes = setting.trained(subject.fitted(recipe))
    worth = text.increase_of(torch.zeros_like(text.x[out]), out)
    error: Values = {}
    recovered: Values = {}
    for name, each in saes.items():
        written = [sae.reconstruct(text.x[out if name == "sae" else inside]) for sae in each]
        error[name] = [fvu(text.x[out], x_hat) for x_hat in written]
        recovered[name] = [1 - text.increase_of(x_hat, out) / worth for x_hat in written]
    return error, recovered


def _faithful(setting: Setting) -> Outcome:
    """A transcoder of the first MLP against an SAE on its output, at equal L0."""
    error, recovered = _written(setting)
    difference = [a - b for a, b in zip(recovered["transcoder"], recovered["sae"], strict=True)]
    less, ratio = over_seeds(difference), over_seeds(ratios(error["transcoder"], error["sae"]))
    return Outcome(
        figures={"share of the MLP's nats recovered, transcoder - SAE": less}
        | {f"share recovered, {name}": over_seeds(each) for name, each in recovered.items()}
        | {"FVU, transcoder / SAE": ratio},
        holds={
            "recovers as much of the model's loss, to 2 %": less.above(-0.02),
            "FVU within 30 %": ratio.below(1.3),
        },
    )


def _skip(setting: Setting) -> Outcome:
    """The same transcoder with a linear skip connection."""
    error, recovered = _written(setting)
    ratio = over_seeds(ratios(error["skip transcoder"], error["transcoder"]))
    nats = [
        (1 - a) / (1 - b)
        for a, b in zip(recovered["skip transcoder"], recovered["transcoder"], strict=True)
    ]
    loss = over_seeds(nats)
    return Outcome(
        figures={"FVU, with a skip / without": ratio, "nats not recovered, the same": loss},
        holds={"a lower error": ratio.below(1), "a lower loss of the model": loss.below(1)},
    )


FAITHFUL = Claim(
    "transcoder",
    "2406.11944",
    "Transcoders are as faithful as SAEs at equal sparsity.",
    "a figure without values (GPT-2 small, Pythia-410M, 1.4B)",
    "tiny, MLP of block 0, k 8",
    _faithful,
    with_model=True,
)
SKIP = Claim(
    "skip-transcoder",
    "2501.18823",
    "A skip connection lowers what a transcoder misses.",
    "a figure without values (Pythia-160M, Gemma-2-2B, Llama-3.2-1B)",
    "tiny, MLP of block 0, k 8",
    _skip,
    with_model=True,
)

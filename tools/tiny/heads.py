"""The role of each attention head of the shipped model, by measurement.

Attention scores say where a head attends; the direct effect and the ablations say whether that
matters. `python -m tools.tiny.heads` writes the table to `weights/heads.json`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel

from saelab.config import Config
from saelab.console import progress
from saelab.files import atomic_write
from saelab.lm.tiny import MODEL_DIR
from saelab.lm.tiny.tasks import Prompts, last_logits, prompts, task
from tools.tiny.architecture import load_model, logits_of
from tools.tiny.head_probes import (
    Head,
    ablated,
    answers,
    attention_scores,
    direct_effects,
    givers,
    mean_outputs,
)


class HeadScores(Config):
    """One head: where it attends, and what its ablation loses."""

    layer: int
    head: int
    previous_token: float
    """Mean attention to the token before, over all positions of repeated-span documents."""
    duplicate_token: float
    """Mean attention to the previous occurrence of the same token, in repeated spans."""
    induction: float
    """Mean attention to the token after that occurrence, in repeated spans."""
    recipient_attention: float
    """Mean attention from the last token of indirect-object prompts to the recipient's name."""
    recipient_direct_effect: float
    """What the head writes directly to logit(recipient) - logit(giver), mean over prompts."""
    induction_accuracy_lost: float
    """Fall of top-1 accuracy in repeated spans when the head is replaced by its mean."""
    induction_log_prob_lost: float
    """Fall of the right token's log probability (nats) in repeated spans, by the same ablation."""
    recipient_logit_lost: float
    """Fall of logit(recipient) - logit(giver), by the same ablation."""
    agreement_lost: float
    """Fall of the log odds (nats) of the right against the wrong verbs' number, by the same
    ablation."""


class HeadReport(Config):
    """All heads of a model, layer by layer, and the figures without ablation."""

    n_prompts: int
    induction_accuracy: float
    induction_log_prob: float
    recipient_logit_difference: float
    agreement_log_odds: float
    accuracy_without_induction_heads: float
    """Top-1 accuracy in repeated spans with all induction heads (`roles`) replaced by means."""
    recipient_logit_without_name_movers: float
    """logit(recipient) - logit(giver) with all name movers replaced by means."""
    heads: tuple[HeadScores, ...]

    @property
    def roles(self) -> dict[str, tuple[Head, ...]]:
        """The heads with each textbook role, the strongest first."""
        return _roles(self.heads)


_ROLES = {
    "previous-token": "previous_token",
    "duplicate-token": "duplicate_token",
    "induction": "induction",
    "name mover": "recipient_direct_effect",
}
ROLE_SHARE = 0.75
"""Heads with this share of the strongest head's score have its role too."""


def _roles(heads: Sequence[HeadScores]) -> dict[str, tuple[Head, ...]]:
    found = {}
    for role, field in _ROLES.items():
        scores = {(h.layer, h.head): float(h.model_dump()[field]) for h in heads}
        ranked = sorted(scores, key=lambda where: -scores[where])
        found[role] = tuple(w for w in ranked if scores[w] >= ROLE_SHARE * scores[ranked[0]])
    return found


@dataclass(frozen=True)
class _Probes:
    """The prompts of the three behaviours, the same number of each."""

    spans: Prompts
    recipients: Prompts
    agreement: Prompts


@dataclass(frozen=True)
class _Figures:
    """Accuracy and log probability in spans, logit difference of recipients, log odds of number."""

    accuracy: float
    log_prob: float
    recipient: float
    agreement: float


def measure_heads(model: GPT2LMHeadModel, n: int = 200, *, seed: int = 1) -> HeadReport:
    """The table of a model with eager attention, on `n` held-out prompts of each behaviour.

    An ablated head writes its mean output over `n` held-out documents. Costs three forward
    passes over the prompts for each head.
    """
    names = ("repeated_span", "indirect_object", "agreement_across_attractor")
    probes = _Probes(*(prompts(task(name), n, seed=seed) for name in names))
    means = mean_outputs(model, n, seed)
    attention = attention_scores(model, probes.spans, probes.recipients)
    direct = direct_effects(model, probes.recipients)
    whole = _figures(model, probes)
    n_layer, n_head = model.config.n_layer, model.config.n_head
    heads = []
    with progress("heads", n_layer * n_head, "heads") as bar:
        for layer in range(n_layer):
            for head in range(n_head):
                with ablated(model, [(layer, head)], means):
                    without = _figures(model, probes)
                seen = [round(float(scores[layer, head]), 4) for scores in (*attention, direct)]
                heads.append(_scores((layer, head), seen, whole, without))
                bar.advance(1)
    roles = _roles(heads)
    with ablated(model, roles["induction"], means):
        no_induction = _figures(model, probes).accuracy
    with ablated(model, roles["name mover"], means):
        no_movers = _figures(model, probes).recipient
    return HeadReport(
        n_prompts=n,
        induction_accuracy=whole.accuracy,
        induction_log_prob=whole.log_prob,
        recipient_logit_difference=whole.recipient,
        agreement_log_odds=whole.agreement,
        accuracy_without_induction_heads=no_induction,
        recipient_logit_without_name_movers=no_movers,
        heads=tuple(heads),
    )


def _scores(where: Head, seen: list[float], whole: _Figures, without: _Figures) -> HeadScores:
    previous, duplicate, induction, recipient, direct = seen
    return HeadScores(
        layer=where[0],
        head=where[1],
        previous_token=previous,
        duplicate_token=duplicate,
        induction=induction,
        recipient_attention=recipient,
        recipient_direct_effect=direct,
        induction_accuracy_lost=round(whole.accuracy - without.accuracy, 4),
        induction_log_prob_lost=round(whole.log_prob - without.log_prob, 4),
        recipient_logit_lost=round(whole.recipient - without.recipient, 4),
        agreement_lost=round(whole.agreement - without.agreement, 4),
    )


def _figures(model: GPT2LMHeadModel, probes: _Probes) -> _Figures:
    logits = logits_of(model)
    span = last_logits(probes.spans, logits)
    words = answers(probes.spans)
    recipient = last_logits(probes.recipients, logits)
    rows = torch.arange(len(recipient))
    gap = recipient[rows, answers(probes.recipients)] - recipient[rows, givers(probes.recipients)]
    verbs, asked = last_logits(probes.agreement, logits), probes.agreement
    right = verbs.masked_fill(~asked.correct, -torch.inf).logsumexp(-1)
    wrong = verbs.masked_fill(~asked.candidates | asked.correct, -torch.inf).logsumexp(-1)
    return _Figures(
        accuracy=round(float((span.argmax(-1) == words).float().mean()), 4),
        log_prob=round(float(span.log_softmax(-1)[rows, words].mean()), 4),
        recipient=round(float(gap.mean()), 4),
        agreement=round(float((right - wrong).mean()), 4),
    )


def main() -> None:
    """Measure a model directory and write its `heads.json`."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny.heads", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="model directory")
    parser.add_argument("--prompts", type=int, default=200, help="prompts of each behaviour")
    arguments = parser.parse_args()
    report = measure_heads(load_model(arguments.model), arguments.prompts)
    path = arguments.model / "heads.json"
    atomic_write(path, report.to_json().encode())
    print(path)  # noqa: T201


if __name__ == "__main__":
    main()

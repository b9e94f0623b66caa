"""Claims, and the list of them; a new claim is one file and one line here (see `saelab.claims`).

`saelab claims`, its table in docs/claims.md and the tests all follow `claims()`. Other packages add
theirs as entry points of the group `saelab.claims` (name = "package.module:CLAIM").
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from saelab.claims.outcome import RANDOM_DIRECTIONS, RANDOM_LATENTS, Outcome
from saelab.claims.setting import Setting
from saelab.config import UsageError
from saelab.registry import Registry

BUILT_IN = {
    "abs-topk-signed": "saelab.claims.abs_topk:SIGNED",
    "abs-topk-error": "saelab.claims.abs_topk:ERROR",
    "abs-topk-poles": "saelab.claims.abs_topk:POLES",
    "batch-topk-planted": "saelab.claims.adaptive_counts:PLANTED",
    "batch-topk-heads": "saelab.claims.adaptive_counts:HEADS",
    "aux-k": "saelab.claims.adaptive_counts:AUX_K",
    "choices-planted": "saelab.claims.choices:PLANTED",
    "choices-heads": "saelab.claims.choices:HEADS",
    "matryoshka": "saelab.claims.matryoshka:ABSORPTION",
    "hierarchical-topk": "saelab.claims.hierarchical_topk:EVERY_BUDGET",
    "penalties-beyond-l1": "saelab.claims.pursuits:PENALTIES",
    "amortisation-gap": "saelab.claims.pursuits:GAP",
    "matching-pursuit": "saelab.claims.matching_pursuit:COHERENT",
    "bilinear-density": "saelab.claims.bilinear:DENSITY",
    "bilinear-mixed": "saelab.claims.bilinear:MIXED",
    "bilinear-circles": "saelab.claims.bilinear:CIRCLES",
    "masked": "saelab.claims.masked:NOISY",
    "bars": "saelab.claims.bars:BARS_TEST",
    "gradient-selection": "saelab.claims.gradient_topk:SELECTION",
    "gradient-training": "saelab.claims.gradient_topk:TRAINING",
    "end-to-end": "saelab.claims.end_to_end:FEWER_LATENTS",
    "transcoder": "saelab.claims.transcoders:FAITHFUL",
    "skip-transcoder": "saelab.claims.transcoders:SKIP",
    "mdl-planted": "saelab.claims.description_length:PLANTED",
    "mdl-activations": "saelab.claims.description_length:ACTIVATIONS",
    "steering-filter": "saelab.claims.steering:FILTER",
    "steering-input": "saelab.claims.steering:INPUT",
    "circuit-latents": "saelab.claims.circuits:FEW_LATENTS",
    "transport": "saelab.claims.transport:TRANSPORT",
}
"""Where each claim is defined, in the order of measuring and of the table."""


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, and how it is measured at small scale.

    Attributes:
        name: lower-case words with hyphens, for `saelab claims --only NAME`.
        paper: the arXiv id.
        says: the claim as one sentence.
        figure: the paper's own figure, with its model and data; "none" if the paper has none.
        on: the model and the data of our measurement, e.g. "48 planted signed features".
        measure: makes the outcome.
        with_model: whether it can be measured on any language model (`--model`), by
            `setting.subject`. Otherwise its rows are planted, or it needs the tiny model's labels.
        intervenes: whether it steers or ablates. Its outcome then needs both controls.
    """

    name: str
    paper: str
    says: str
    figure: str
    on: str
    measure: Callable[[Setting], Outcome]
    with_model: bool = False
    intervenes: bool = False

    def outcome(self, setting: Setting) -> Outcome:
        """What `measure` finds.

        Raises:
            ValueError: a control is missing.
        """
        found = self.measure(setting)
        missing = {RANDOM_DIRECTIONS, RANDOM_LATENTS} - found.controls.keys()
        if self.intervenes and missing:
            raise ValueError(f"The claim {self.name} lacks the controls {sorted(missing)}.")
        return found


def _own_name(claim: object) -> str:
    if not isinstance(claim, Claim):
        raise UsageError(f"{claim!r} is no Claim.")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", claim.name):
        raise UsageError(f"A claim cannot have the name {claim.name!r}; use words and hyphens.")
    return claim.name


REGISTRY: Registry[Claim] = Registry(
    "claim", "saelab.claims", BUILT_IN, _own_name, lambda c: c.measure.__module__
)


def claims() -> dict[str, Claim]:
    """Every claim by its name: built-in, of other packages, registered."""
    return REGISTRY.everything()


def find_claim(name: str) -> Claim:
    """The claim of that name.

    Raises:
        UsageError: there is none; the message lists all.
    """
    return REGISTRY.find(name)


def register_claim(claim: Claim) -> Claim:
    """Make a claim of your own known in this process, as a built-in one is.

    Raises:
        UsageError: the name is taken or not allowed, or it is no claim.
    """
    return REGISTRY.register(claim)

"""The subject of the Attention page: an attention latent, a text, and the followed latents."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.pages.attention.address import AttentionAddress
from saelab import sites

NOBODY = "none"
BETWEEN = "|"
LONGEST_TRAIL = 12
_STEP = re.compile(r"(.+):(\d{1,9})@(\d{1,6})")


@dataclass(frozen=True)
class TrailStep:
    """A latent at a token, as one step of the trail.

    Attributes:
        sae: its run's name below the directory of runs.
    """

    sae: str
    latent: int
    position: int

    @property
    def text(self) -> str:
        """The step's text in the address."""
        return f"{self.sae}:{self.latent}@{self.position}"


def trail_of(text: str, saes: Sequence[str]) -> list[TrailStep]:
    """The latents named by `?trail=`, up to the first that belongs to none of the SAEs."""
    steps = []
    for part in text.split(BETWEEN)[:LONGEST_TRAIL] if text else ():
        found = _STEP.fullmatch(part)
        if found is None or found[1] not in saes:
            break
        steps.append(TrailStep(found[1], int(found[2]), int(found[3])))
    return steps


def trail_text(steps: Sequence[TrailStep]) -> str:
    """These latents as text for the address."""
    return BETWEEN.join(step.text for step in steps)


def depth(card: RunCard) -> int | None:
    """The rank of what a run's SAE reads in the computation; None if circuits have no rule."""
    place = _place(card)
    return None if place is None else place.depth


def reads_heads(card: RunCard) -> bool:
    """Whether the run's SAE reads attention heads, before W_O or after it."""
    place = _place(card)
    return place is not None and place.kind in ("heads", "attention")


def _place(card: RunCard) -> sites.Place | None:
    return sites.place_of(card.site, str(card.config.get("target_site") or card.site))


def runs_before(catalogue: Catalogue, card: RunCard) -> dict[int, list[RunCard]]:
    """Runs of the same model that read something earlier than this run, by its rank."""
    own = depth(card)
    found: dict[int, list[RunCard]] = {}
    for other in catalogue.runs.values():
        rank = depth(other)
        if own is not None and rank is not None and rank < own and other.model == card.model:
            found.setdefault(rank, []).append(other)
    return dict(sorted(found.items()))


def chosen_runs(found: dict[int, list[RunCard]], address: AttentionAddress) -> list[RunCard]:
    """For each rank, the run that `?beside=` names, else the first; or none at all."""
    if address.beside == NOBODY:
        return []
    named = address.beside.split(BETWEEN)
    return [
        next((card for card in cards if card.name in named), cards[0]) for cards in found.values()
    ]


def beside_text(found: dict[int, list[RunCard]], address: AttentionAddress, wanted: RunCard) -> str:
    """`?beside=` with this run instead of others of its rank."""
    rank = depth(wanted)
    kept = [card for card in chosen_runs(found, address) if depth(card) != rank]
    return BETWEEN.join(card.name for card in (*kept, wanted))

"""Whether two runs' latents can be matched: their places, and the widths of their decoders."""

from feature_browser.data.catalogue import RunCard
from feature_browser.data.weights import width


def cannot_match(card: RunCard, other: RunCard) -> str | None:
    """Why two runs' latents cannot be matched, in one sentence; None if they can.

    Raises:
        UsageError: a weights file is damaged.
    """
    if card.site != other.site or card.model != other.model:
        return (
            f"Latents are matched only at the same place: {card.name} is of {card.model} · "
            f"{card.site}, {other.name} of {other.model} · {other.site}."
        )
    widths = [width(run.weights_path)[1] for run in (card, other)]
    if widths[0] != widths[1]:
        return (
            f"Latents are matched only between decoders of the same width: {card.name} writes to "
            f"{widths[0]} dimensions, {other.name} to {widths[1]}."
        )
    return None

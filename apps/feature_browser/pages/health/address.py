"""What the address says on the Health page."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, one_of, page_number


@dataclass(frozen=True, kw_only=True)
class HealthAddress(AbstractAddress):
    """Which latents are listed: those of a kind, else of the first kind that has some.

    Attributes:
        part: whether all that was measured is shown, too.
    """

    view = "health"
    keep: str = one_of("", "dead", "dense", "duplicate", "massive")
    page: str = page_number()
    part: str = one_of("", "measured")

"""What the address says on the Compare page."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, one_of, page_number, parameter
from feature_browser.pages.compare.correspondence import KINDS

SIDES = ("this", "other")


@dataclass(frozen=True, kw_only=True)
class CompareAddress(AbstractAddress):
    """The other run, and which latents are listed.

    Attributes:
        other: the run that this one is compared with.
        side: whose latents are listed.
        keep: of which kind; all if empty.
        page: of the table.
    """

    view = "compare"
    other: str | None = parameter(None, stays=True)
    side: str = one_of(*SIDES, stays=True)
    keep: str = one_of("", *KINDS)
    page: str = page_number()

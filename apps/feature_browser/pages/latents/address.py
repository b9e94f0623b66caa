"""What the address says on the page of all latents."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, box, one_of, page_number, parameter

SORTS = ("f1", "latent", "density", "max", "mean", "negative")
PARTS = ("", "labelled", "bookmarked", "firing", "ordinary", "massive")


@dataclass(frozen=True, kw_only=True)
class LatentsAddress(AbstractAddress):
    """What the table lists.

    Attributes:
        sort, q, page: its order, the text that is searched for, and its page.
        keep: which latents; all if empty.
        axes: the two figures of the picture, with a comma between; no picture if empty.
        box: the cell of the picture whose latents are listed.
    """

    view = "latents"
    sort: str = one_of(*SORTS)
    q: str = parameter("")
    page: str = page_number()
    keep: str = one_of(*PARTS)
    box: str = box()
    axes: str = parameter("")

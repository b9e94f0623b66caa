"""What the address says on the page of all latents."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, box, one_of, page_number, parameter


@dataclass(frozen=True, kw_only=True)
class LatentsAddress(AbstractAddress):
    """What the table lists: those `keep` leaves of what `q` finds, or of a cell of the picture.

    `axes` are the two figures of the picture, with a comma between; no picture if empty.
    """

    view = "latents"
    sort: str = one_of("f1", "latent", "density", "max", "mean", "negative")
    q: str = parameter("")
    page: str = page_number()
    keep: str = one_of("", "labelled", "bookmarked", "firing", "ordinary", "massive")
    box: str = box()
    axes: str = parameter("")

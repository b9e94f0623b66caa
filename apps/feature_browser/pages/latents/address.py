"""The address of the page of all latents."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, box, one_of, page_number, parameter


@dataclass(frozen=True, kw_only=True)
class LatentsAddress(AbstractAddress):
    """The table's latents: those that `keep` leaves of the search `q`, or of a picture's cell.

    `axes` are the two figures of the picture, with a comma between; no picture if empty.
    """

    view = "latents"
    sort: str = one_of("f1", "latent", "density", "max", "mean", "negative", "score")
    q: str = parameter("")
    page: str = page_number()
    keep: str = one_of(
        *("", "labelled", "bookmarked", "explained", "accepted", "rejected"),
        *("firing", "ordinary", "massive"),
    )
    box: str = box()
    axes: str = parameter("")

"""The address of the page of transport."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, box, one_of, page_number, parameter


@dataclass(frozen=True, kw_only=True)
class TransportAddress(AbstractAddress):
    """The listed latents of a pair of sites.

    Attributes:
        pair: the name of the pair's file; the first pair with latents if empty or unknown.
        limit: R² that separates carried latents from computed ones.
        sort, q, page, keep, box: the table's order, the search text, its page, the verdict to keep
            (all but rare ones if empty), and the picked cell of the picture.
    """

    view = "transport"
    pair: str = parameter("")
    limit: str = one_of("0.5", "0.25", "0.75", "0.9")
    sort: str = one_of("best", "latent", "identity", "other", "direction", "everywhere", "n_fired")
    q: str = parameter("")
    page: str = page_number()
    keep: str = one_of("", "carried", "computed", "undecided", "rare")
    box: str = box()

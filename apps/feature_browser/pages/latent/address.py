"""What the address says on the Latent page."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, one_of, parameter

CONTEXTS = ("8", "16", "full")
SHOWN = ("strongest", "strata", "silent")


@dataclass(frozen=True, kw_only=True)
class LatentAddress(AbstractAddress):
    """Which latent, and which of its examples.

    Attributes:
        latent: a number, if the reader typed one.
        context: tokens on either side of a peak.
        show: which examples.
    """

    view = "latent"
    latent: str | None = parameter(None, stays=True)
    context: str = parameter("16", CONTEXTS.__contains__, stays=True)
    show: str = one_of(*SHOWN, stays=True)

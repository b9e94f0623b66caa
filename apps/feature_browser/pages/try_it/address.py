"""The address of the page Try it."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, one_of, page_number, parameter
from feature_browser.pages.try_it.lists import PAIR_SORTS, SORTS


@dataclass(frozen=True, kw_only=True)
class TryAddress(AbstractAddress):
    """The prompts to try; the second is compared with the first.

    Attributes:
        latent: the latent that shades the prompts, if the reader picked one.
        chat: "1" where they go through the model's chat template.
        pos: the token that was picked.
        by: whether the table has a row for each token instead of each latent.
        target: the token whose logit is asked about; the likeliest if empty.
    """

    view = "try"
    latent: str | None = parameter(None, stays=True)
    prompt: str = parameter("")
    second: str = parameter("")
    chat: str = parameter("")
    pos: str = parameter("")
    target: str = parameter("")
    sort: str = one_of("", *SORTS, *PAIR_SORTS)
    by: str = one_of("", "token")
    page: str = page_number()

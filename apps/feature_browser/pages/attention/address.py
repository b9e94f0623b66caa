"""What the address says on the Attention page."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, is_number, parameter


@dataclass(frozen=True, kw_only=True)
class AttentionAddress(AbstractAddress):
    """A latent of heads at a token of a text, and the latents followed from there.

    Attributes:
        latent: a number, if the reader typed one.
        prompt: a text to read instead of an example.
        chat: "1" where it goes through the model's chat template.
        pos: the position of the text where the latent fires.
        example: which stored text is read, where no prompt was typed.
        source, head: the source token and the head that were picked.
        trail: the latents that were followed to get there, see `trail`.
        beside: the runs that take sources apart, with bars between.
    """

    view = "attention"
    latent: str | None = parameter(None, stays=True)
    prompt: str = parameter("")
    chat: str = parameter("")
    pos: str = parameter("", is_number)
    example: str = parameter("0", is_number)
    source: str = parameter("", is_number)
    head: str = parameter("", is_number)
    trail: str = parameter("")
    beside: str = parameter("")

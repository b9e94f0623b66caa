"""The address of the Attention page."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, is_number, parameter


@dataclass(frozen=True, kw_only=True)
class AttentionAddress(AbstractAddress):
    """A latent of heads at a token of a text, and the latents followed from there.

    Attributes:
        latent: a number, if the reader typed one.
        prompt: a text to use instead of an example.
        chat: "1" if the prompt goes through the model's chat template.
        pos: the position of the text where the latent fires.
        example: the stored text to use if no prompt was typed.
        source, head: the picked source token and head.
        trail: the latents that were followed, see `trail`.
        beside: the runs whose SAEs decompose sources, separated by bars.
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

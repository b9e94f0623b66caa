"""The address of the Steering page."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, box, one_of, page_number, parameter


@dataclass(frozen=True, kw_only=True)
class SteeringAddress(AbstractAddress):
    """The listed scores, or the experiment to run.

    Attributes:
        part: the part of the page: scores, or steering by hand.
        sort, q, page, keep, box: for scores: the table's order, the search text, its page, the rows
            to keep (all if empty), and the picked cell of the picture.
        latent, prompt, chat: initial values of a new experiment's form.
        experiment: the experiment as JSON, see `experiment`.
        saved: the name of a saved experiment.
    """

    view = "steering"
    part: str = one_of("scores", "live")
    sort: str = one_of("output", "latent", "input", "probability", "rank")
    q: str = parameter("")
    page: str = page_number()
    keep: str = one_of("", "output", "input", "both", "neither")
    box: str = box()
    latent: str | None = parameter(None, stays=True)
    prompt: str = parameter("")
    chat: str = parameter("")
    experiment: str = parameter("")
    saved: str = parameter("")

"""What the address says on the Steering page."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, box, one_of, page_number, parameter


@dataclass(frozen=True, kw_only=True)
class SteeringAddress(AbstractAddress):
    """Which scores are listed, or the experiment that is run.

    Attributes:
        part: the half of the page: what was scored, or steering by hand.
        sort, q, page, keep, box: of the scores: the table's order, the text that is searched for,
            its page, which rows (all if empty), and the cell of the picture that was picked.
        latent, prompt, chat: what the form of a new experiment begins with.
        experiment: what is steered, as JSON, see `experiment`.
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

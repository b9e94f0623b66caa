"""A slider of strengths, whose texts are on the page already: moving it asks the server nothing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from feature_browser.data.address import setting
from feature_browser.draw.boxes import boxed
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.pages.steering.experiment import Experiment
from feature_browser.pages.steering.live_cards import said, strength_text

if TYPE_CHECKING:
    from saelab.analysis.steering.generate import Continuation


def dial(
    prompt: str, experiments: Sequence[Experiment], texts: "Sequence[Continuation]", own: int
) -> Html:
    """The slider, at the experiment number `own`, and what is said at each of its strengths."""
    notches = [
        _notch(prompt, *one, number, shown=number == own)
        for number, one in enumerate(zip(experiments, texts, strict=True))
    ]
    ends = [f"{one.strength:g}".replace("-", "\u2212") for one in (experiments[0], experiments[-1])]
    body = html(
        '<div class="dial"><div class="row"><span class="sub">{low}</span><input type="range" '
        'data-dial min="0" max="{last}" value="{own}" aria-label="Strength" '
        'aria-valuetext="{text}"><span class="sub">{high}</span></div>{notches}</div>',
        low=ends[0], high=ends[1], last=len(notches) - 1, own=own,
        text=strength_text(experiments[own]), notches=joined(notches),
    )  # fmt: skip
    return boxed("At other strengths", body, hint="drag, or arrow keys: nothing is computed anew")


def _notch(
    prompt: str, experiment: Experiment, text: "Continuation", number: int, *, shown: bool
) -> Html:
    take = html(
        ' <button class="plain" data-set="{s}">take it</button>',
        s=setting(experiment=experiment.text, saved=""),
    )
    return html(
        '<div data-notch="{n}"{hidden}><p class="change"><b>{change}</b>{take}</p>{said}</div>',
        n=number, hidden=EMPTY if shown else Html(" hidden"), change=strength_text(experiment),
        take=EMPTY if shown else take, said=said(prompt, text),
    )  # fmt: skip

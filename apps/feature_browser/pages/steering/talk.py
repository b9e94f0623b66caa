"""Steering as a conversation: what the plain and the steered model answer, turn by turn."""

from typing import TYPE_CHECKING

import streamlit as st

from feature_browser.data.address import setting
from feature_browser.data.catalogue import RunCard
from feature_browser.data.reading import stamp
from feature_browser.draw.boxes import boxed
from feature_browser.draw.markup import EMPTY, Html, html, joined, running
from feature_browser.live.model import live_run
from feature_browser.pages.steering.address import SteeringAddress
from feature_browser.pages.steering.experiment import (
    MOST_TURNS,
    Experiment,
    experiment_of,
    run_reply,
)
from feature_browser.shell.canvas import change, tell
from saelab.config import UsageError
from saelab.console import visible
from saelab.lm.prompt import LONGEST

if TYPE_CHECKING:
    from saelab.analysis.steering.conversation import Exchange
    from saelab.analysis.steering.generate import Continuation
    from saelab.host.host import Host

SAY, REFUSED = "steer-say", "steer-refused"


def talk(card: RunCard, experiment: Experiment) -> Html:
    """The conversation so far, the plain model's beside the steered one's.

    A message that cannot be answered leaves the conversation for the field that it was typed in,
    where `say_box` says why.

    Raises:
        UsageError: the first message cannot be answered, or the model has no chat template.
    """
    stamps = (stamp(card.weights_path), stamp(card.evidence_path))
    try:
        exchanges = _exchanges(live_run(card), str(card.path), stamps, experiment.text)
    except UsageError as error:
        if not experiment.then:
            raise
        _take_back(experiment, str(error))
        st.rerun()
    cards = [
        boxed(title, joined(_turn(one.message, getattr(one, side)) for one in exchanges))
        for title, side in (("Plain", "plain"), ("Steered", "steered"))
    ]
    back = experiment.model_copy(update={"then": experiment.then[:-1]})
    undo = html('<button class="plain" data-set="{s}">take the last message back</button>',
                s=setting(experiment=back.text))  # fmt: skip
    return html(
        '<h2>Conversation</h2><p class="sub">Each model reads its own answers; both share their '
        'random numbers. {undo}</p><div class="two even talk">{cards}</div>',
        cards=joined(cards), undo=undo if experiment.then else EMPTY,
    )  # fmt: skip


def say_box(experiment: Experiment) -> None:
    """Draw the field that goes on with the conversation."""
    if len(experiment.then) >= MOST_TURNS:
        return
    with (
        st.container(key="steer-talk"),
        st.form("steer-say-form", border=False),
        st.container(horizontal=True, vertical_alignment="bottom"),
    ):
        st.text_input(
            "Say more to both", key=SAY, placeholder="your next message", max_chars=LONGEST
        )
        st.form_submit_button("Send", on_click=_sent)
    where, sentence = st.session_state.get(REFUSED, ("", ""))
    tell(sentence if where == experiment.text else "", "say-problem")


def _take_back(experiment: Experiment, sentence: str) -> None:
    """Keep the turns before the last message, and give the message back with what is wrong."""
    before = experiment.model_copy(update={"then": experiment.then[:-1]})
    st.session_state[SAY] = experiment.then[-1]
    st.session_state[REFUSED] = (before.text, sentence)
    change(SteeringAddress, lambda now: now.to(experiment=before.text, saved=""))


def _sent() -> None:
    text = st.session_state[SAY].strip()
    if not text:
        return
    st.session_state[SAY] = ""

    def with_message(now: SteeringAddress) -> SteeringAddress:
        before = experiment_of(now.experiment)
        after = before.model_copy(update={"then": (*before.then, text)})
        return now.to(experiment=after.text, saved="")

    change(SteeringAddress, with_message)


@st.cache_resource(max_entries=256, show_spinner="Both models answer …")
def _exchanges(
    _live: "Host", path: str, stamps: tuple[int, int], text: str
) -> "tuple[Exchange, ...]":
    """The answers to all messages; those to the earlier ones are kept from the turns before."""
    experiment = experiment_of(text)
    earlier = ()
    if experiment.then:
        before = experiment.model_copy(update={"then": experiment.then[:-1]})
        earlier = _exchanges(_live, path, stamps, before.text)
    return (*earlier, run_reply(_live, experiment, earlier))


def _turn(message: str, answer: "Continuation") -> Html:
    said = visible(answer.text.strip())
    return html(
        '<p class="said" dir="auto"><span class="sub">you</span> {message}</p>'
        '<p class="text answer" dir="auto">{answer}</p>',
        message=visible(message),
        answer=running(said) if said else html('<span class="sub">nothing</span>'),
    )

"""Prompts of models that were trained to chat: a switch, and what it makes of a prompt."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.live.model import lock_of
from saelab.lm.prompt import chat_prompt, has_chat_template, prompt_note

if TYPE_CHECKING:
    from saelab.host.host import Host

SWITCH = "chat-switch"
LABEL = "Chat template"
HELP = (
    "The prompt is what a user says, or messages as JSON: "
    '[{"role": "system", "content": "..."}, {"role": "user", "content": "..."}]'
)


@st.cache_data(show_spinner=False, ttl=60)
def chats(model: str) -> bool:
    """Whether prompts of a model can go through a chat template."""
    return has_chat_template(model)


def switch(card: RunCard, chat: str, switched: Callable[[str], None]) -> None:
    """Draw the switch, where the model's tokenizer has a template.

    `chat` is the page's `?chat=`, "1" or empty; `switched` is given the other.
    """
    if not chats(card.model):
        return
    if st.session_state.get(SWITCH) != bool(chat):
        st.session_state[SWITCH] = bool(chat)
    st.toggle(LABEL, key=SWITCH, on_change=switched, args=("" if chat else "1",), help=HELP)


def prompted(live: "Host", text: str, *, chat: bool) -> str:
    """The prompt that the model reads for a text; raises `UsageError` as `chat_prompt` does."""
    if not chat:
        return text
    with lock_of(live.lm):
        return chat_prompt(live.lm, text)


def noted(live: "Host", text: str, *, chat: bool) -> str:
    """What is done to a prompt otherwise than typed; empty where nothing."""
    if chat:
        return ""
    with lock_of(live.lm):
        found = prompt_note(live.lm, text)
    return found[:1].upper() + found[1:]

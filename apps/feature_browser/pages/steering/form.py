"""The form of live steering, filled with the address's experiment."""

import json

import streamlit as st

from feature_browser.data.address import is_number
from feature_browser.data.catalogue import RunCard
from feature_browser.data.reading import readable_scores
from feature_browser.data.suggestions import suggestions
from feature_browser.live.chat import HELP, LABEL, chats
from feature_browser.pages.steering.address import SteeringAddress
from feature_browser.pages.steering.experiment import ERRORS, OPS, UNITS, Experiment, experiment_of
from feature_browser.shell.canvas import STATIC, change, tell
from saelab.config import UsageError

SHOWN, PROBLEM = "steer-shown", "steer-problem"
FIELDS = ("latents", "op", "strength", "unit", "positions", "error", "prompt", "chat",
          "n_tokens", "temperature", "seed", "dose")  # fmt: skip
MAXIMA = "each latent's largest activation on the corpus"


def form(card: RunCard, address: SteeringAddress, experiment: Experiment | None) -> None:
    """Draw the form; a submitted form becomes the experiment of the address."""
    st.html(STATIC / "page_live.css")
    _fill(card, address, experiment)
    with st.container(key="steer-form"), st.form("steer", border=False):
        with st.container(horizontal=True, vertical_alignment="bottom"):
            st.text_input("Latents", key="steer-latents", placeholder="12 99", width=150)
            st.selectbox("Change", OPS, key="steer-op", format_func=OPS.__getitem__, width=190)
            st.number_input("Strength", key="steer-strength", step=0.5, format="%g", width=120)
            st.selectbox(
                "in units",
                UNITS,
                key="steer-unit",
                format_func=UNITS.__getitem__,
                width=210,
                help=MAXIMA,
            )
            st.text_input(
                "Positions", key="steer-positions", width=110,
                help="last: from the prompt's last token on; all; or from a position on, 0 first",
            )  # fmt: skip
            st.selectbox(
                "SAE error", ERRORS, key="steer-error", format_func=ERRORS.__getitem__, width=140
            )
        with st.container(horizontal=True, vertical_alignment="bottom"):
            st.text_area("Prompt", key="steer-prompt", height=68, width="stretch")
            st.number_input("Tokens", key="steer-n_tokens", min_value=1, max_value=200, width=100)
            st.number_input(
                "Temperature", key="steer-temperature", min_value=0.0, max_value=10.0, step=0.1,
                format="%g", width=110,
            )  # fmt: skip
            st.number_input(
                "Seed", key="steer-seed", min_value=0, max_value=2**31 - 1, step=1, width=100
            )
            st.checkbox("Dose-response", key="steer-dose")
            if chats(card.model):
                st.checkbox(LABEL, key="steer-chat", help=HELP)
            st.form_submit_button("Steer", on_click=_submitted, type="primary")
    tell(st.session_state.pop(PROBLEM, ""), "steer-problem")


def _fill(card: RunCard, address: SteeringAddress, experiment: Experiment | None) -> None:
    """Fill the fields from the address's experiment, once per address."""
    shown = (address.run, address.experiment, address.latent, address.prompt, address.chat)
    missing = [name for name in FIELDS if f"steer-{name}" not in st.session_state]
    if st.session_state.get(SHOWN) == shown and not missing:
        return
    st.session_state[SHOWN] = shown
    latents = (int(address.latent),) if address.latent and is_number(address.latent, 9) else ()
    if experiment is None and not missing:
        # Only a latent or a prompt came with the address: what was typed stays.
        st.session_state["steer-latents"] = " ".join(map(str, latents))
        if address.prompt:
            st.session_state["steer-prompt"] = address.prompt
            st.session_state["steer-chat"] = bool(address.chat)
        return
    given = experiment or Experiment.model_construct(
        prompt=address.prompt or _neutral(card), chat=bool(address.chat), latents=latents
    )
    values = {name: getattr(given, name) for name in FIELDS}
    values["latents"] = " ".join(str(latent) for latent in given.latents)
    values["positions"] = str(given.positions)
    for name, value in values.items():
        st.session_state[f"steer-{name}"] = value


def _neutral(card: RunCard) -> str:
    """A prompt to begin with: that of the scores, or a beginning of the run's own text."""
    scores = readable_scores(card)
    if scores is not None and scores.facts.get("prompt"):
        return str(scores.facts["prompt"])
    texts = suggestions(card)
    return max(texts, key=lambda text: sum(map(str.isalpha, text))) if texts else ""


def _submitted() -> None:
    values = {name: st.session_state[f"steer-{name}"] for name in FIELDS}
    values["latents"] = values["latents"].replace(",", " ").split()
    positions = values["positions"].strip()
    values["positions"] = int(positions) if is_number(positions, 9) else positions
    try:
        # A conversation begins anew with what it is about.
        experiment = experiment_of(json.dumps(values))
    except UsageError as error:
        st.session_state[PROBLEM] = str(error)
        return
    asked = {"latent": None, "prompt": "", "chat": "", "saved": "", "experiment": experiment.text}
    change(SteeringAddress, lambda now: now.to(**asked))

"""The form of live steering: its fields hold the experiment of the address."""

import json

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.data.reading import steering_scores
from feature_browser.data.suggestions import suggestions
from feature_browser.draw.markup import html
from feature_browser.live.chat import HELP, LABEL, chats
from feature_browser.pages.steering.experiment import ERRORS, OPS, UNITS, Experiment, experiment_of
from feature_browser.shell.canvas import STATIC, go_to, here, show
from feature_browser.shell.chrome import alone
from feature_browser.shell.place import Place
from saelab.config import UsageError

SHOWN, PROBLEM = "steer-shown", "steer-problem"
FIELDS = ("latents", "op", "strength", "unit", "positions", "error", "prompt", "chat",
          "n_tokens", "temperature", "seed", "dose")  # fmt: skip
MAXIMA = "each latent's largest activation on the corpus"


def form(card: RunCard, place: Place, experiment: Experiment | None) -> None:
    """Draw the form; what is submitted becomes the experiment of the address."""
    st.html(STATIC / "page_live.css")
    _fill(card, place, experiment)
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
    if problem := st.session_state.pop(PROBLEM, ""):
        show(alone(html('<p class="notice">{p}</p>', p=problem)), "steer-problem")


def _fill(card: RunCard, place: Place, experiment: Experiment | None) -> None:
    """Put the address's experiment into the fields, once for each address."""
    address = (place.run, place.experiment, place.latent, place.prompt, place.chat)
    missing = [name for name in FIELDS if f"steer-{name}" not in st.session_state]
    if st.session_state.get(SHOWN) == address and not missing:
        return
    st.session_state[SHOWN] = address
    latents = (int(place.latent),) if place.latent and _number(place.latent) else ()
    if experiment is None and not missing:
        # Only a latent was picked, or a prompt brought along: what was typed stays.
        st.session_state["steer-latents"] = " ".join(map(str, latents))
        if place.prompt:
            st.session_state["steer-prompt"] = place.prompt
            st.session_state["steer-chat"] = bool(place.chat)
        return
    given = experiment or Experiment.model_construct(
        prompt=place.prompt or _neutral(card), chat=bool(place.chat), latents=latents
    )
    values = {name: getattr(given, name) for name in FIELDS}
    values["latents"] = " ".join(str(latent) for latent in given.latents)
    values["positions"] = str(given.positions)
    for name, value in values.items():
        st.session_state[f"steer-{name}"] = value


def _number(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


def _neutral(card: RunCard) -> str:
    """A prompt to begin with: that of the scores, or a beginning of the run's own text."""
    try:
        scores = steering_scores(card)
    except UsageError:
        scores = None
    if scores is not None and scores.facts.get("prompt"):
        return str(scores.facts["prompt"])
    texts = suggestions(card)
    return max(texts, key=lambda text: sum(map(str.isalpha, text))) if texts else ""


def _submitted() -> None:
    values = {name: st.session_state[f"steer-{name}"] for name in FIELDS}
    values["latents"] = values["latents"].replace(",", " ").split()
    positions = values["positions"].strip()
    values["positions"] = int(positions) if _number(positions) else positions
    try:
        experiment = experiment_of(json.dumps(values))
    except UsageError as error:
        st.session_state[PROBLEM] = str(error)
        return
    go_to(here().to(experiment=experiment.text, latent=None, prompt="", chat="", saved=""))

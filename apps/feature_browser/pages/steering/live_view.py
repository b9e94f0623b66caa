"""Live steering: a form for an experiment, its results, and saved experiments."""

from typing import TYPE_CHECKING

import streamlit as st

from feature_browser.data.address import link, setting
from feature_browser.data.catalogue import OWN_ARRAYS, RunCard
from feature_browser.data.labels import LatentNames
from feature_browser.data.reading import readable_scores, stamp
from feature_browser.draw.boxes import alone, boxed, message
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.tables import Column, anchor, cell, table
from feature_browser.live.chat import noted
from feature_browser.live.model import live_run
from feature_browser.pages.steering.address import SteeringAddress
from feature_browser.pages.steering.dial import dial
from feature_browser.pages.steering.experiment import (
    Experiment,
    dialled,
    experiment_of,
    run_dialled,
    run_doses,
    run_experiment,
)
from feature_browser.pages.steering.form import form
from feature_browser.pages.steering.live_cards import doses, effect_line, strength_text, texts
from feature_browser.pages.steering.saved import Saved, read, save, shelf
from feature_browser.pages.steering.talk import say_box, talk
from feature_browser.shell.canvas import change, palette, plot, show, tell
from saelab.config import UsageError
from saelab.console import visible
from saelab.figures.steering import dose_figure

if TYPE_CHECKING:
    from saelab.analysis.steering.dose import DoseResponse
    from saelab.analysis.steering.generate import Comparison, Continuation
    from saelab.host.host import Host

NAME, PROBLEM = "experiment-name", "experiment-problem"
N_SUGGESTED = 6


def live_steering_view(card: RunCard, address: SteeringAddress) -> None:
    """Draw the form, and the results of the experiment of `address`."""
    if card.model == OWN_ARRAYS:
        show(alone(_no_model(card)), "steering")
        return
    try:
        experiment = experiment_of(address.experiment) if address.experiment else None
    except UsageError as error:
        show(alone(message("This is not an experiment", str(error))), "steering")
        return
    form(card, address, experiment)
    if experiment is None:
        show(_page([_start(card), _shelf(card, address)]), "steering")
        return
    try:
        comparison, dose = _run(card, experiment)
        talked = talk(card, experiment) if experiment.chat else EMPTY
    except UsageError as error:
        problem = message("This cannot be steered", str(error))
        show(_page([problem, _shelf(card, address)]), "steering")
        return
    show(_page([*_results(card, address, experiment, comparison), talked]), "steering")
    # Filled last: what is known already does not wait for the other strengths.
    at_other_strengths = st.container()
    if experiment.chat:
        say_box(experiment)
    _save_box(card, experiment, comparison)
    after = [doses(dose, experiment)] if dose else []
    if dose is not None:
        plot(dose_figure(dose, palette()), "doses")
    if experiment.dose and dose is None:
        after.append(html('<p class="sub">{t}</p>', t=_NO_DOSE))
    show(_page([*after, _shelf(card, address)]), "steering-more")
    with at_other_strengths:
        show(_page([_dial(card, experiment, comparison)]), "dial")


def parts(address: SteeringAddress) -> Html:
    """Links to the two parts of Steering: scores, and steering by hand."""
    names = {"scores": "Which latents steer?", "live": "Steer live"}
    links = joined(
        html(
            '<a href="{href}"{on}>{name}</a>',
            href=address.fresh(part=part).href,
            on=Html(' aria-current="page"') if part == address.part else EMPTY,
            name=name,
        )
        for part, name in names.items()
    )
    return html('<nav class="parts" aria-label="Steering">{links}</nav>', links=links)


_NO_DOSE = "There is no dose to vary: an ablation has none, nor has a strength of 0."


def _page(content: list[Html]) -> Html:
    return html('<div class="page wide steer">{c}</div>', c=joined(content))


def _run(card: RunCard, experiment: Experiment) -> "tuple[Comparison, DoseResponse | None]":
    live = live_run(card)
    stamps = (stamp(card.weights_path), stamp(card.evidence_path))
    comparison = _compared(live, str(card.path), stamps, experiment.text)
    dose = _dosed(live, str(card.path), stamps, experiment.text) if experiment.dose else None
    return comparison, dose


@st.cache_resource(max_entries=64, show_spinner="Steering …")
def _compared(_live: "Host", path: str, stamps: tuple[int, int], text: str) -> "Comparison":
    del path, stamps  # part of the cache's key only
    return run_experiment(_live, experiment_of(text))


@st.cache_resource(max_entries=64, show_spinner="Trying a range of strengths …")
def _dosed(_live: "Host", path: str, stamps: tuple[int, int], text: str) -> "DoseResponse | None":
    del path, stamps  # part of the cache's key only
    return run_doses(_live, experiment_of(text))


def _dial(card: RunCard, experiment: Experiment, comparison: "Comparison") -> Html:
    experiments = dialled(experiment)
    if not experiments:
        return EMPTY
    stamps = (stamp(card.weights_path), stamp(card.evidence_path))
    try:
        found = _dialled(live_run(card), str(card.path), stamps, experiment.text)
    except UsageError as error:
        return html('<p class="notice">At other strengths: {e}</p>', e=error)
    return dial(comparison.prompt, experiments, found, experiments.index(experiment))


@st.cache_resource(max_entries=64, show_spinner="Steering at other strengths …")
def _dialled(_live: "Host", path: str, stamps: tuple[int, int], text: str) -> "list[Continuation]":
    del path, stamps  # part of the cache's key only
    return run_dialled(_live, experiment_of(text))


def _no_model(card: RunCard) -> Html:
    return message(
        "There is no model to steer",
        f"{card.name} was trained on arrays, not on a language model.",
    )


def _start(card: RunCard) -> Html:
    """The first step: choose latents, e.g. those that steer best."""
    names = LatentNames.of(card)
    scores = readable_scores(card)
    best = [] if scores is None else [int(scores.latent[row]) for row in scores.best(N_SUGGESTED)]
    chips = joined(
        html(
            '<button class="next" data-set="{set}"><b>{latent}</b> {name}</button>',
            set=setting(latent=latent), latent=latent, name=names.name(latent),
        )
        for latent in best
    )  # fmt: skip
    after = html(
        '<div class="following"><span class="sub">Highest output scores</span>{chips}</div>',
        chips=chips,
    )
    return message(
        "What does the model say when a latent is changed?",
        "Name one or several latents, choose how they are changed, and steer. Baseline and steered "
        "text are drawn with the same random numbers. The first time, loading the model takes some "
        "seconds.",
        after=after if best else EMPTY,
    )


def _results(
    card: RunCard, address: SteeringAddress, experiment: Experiment, comparison: "Comparison"
) -> list[Html]:
    names = LatentNames.of(card)
    latents = joined(
        html(
            '<a class="chip" href="{href}"><b>{latent}</b> {name}</a> ',
            href=link("latent", run=address.run, latent=latent),
            latent=latent,
            name=names.name(latent),
        )
        for latent in experiment.latents
    )
    title = html(
        '<h1 class="headline">{what}</h1><p>{latents}</p>',
        what=_capital(strength_text(experiment)), latents=latents,
    )  # fmt: skip
    said = noted(live_run(card), experiment.prompt, chat=experiment.chat)
    title = joined([html('<p class="notice">{n}</p>', n=said) if said else EMPTY, title])
    return [title, effect_line(comparison), texts(comparison, _kept(card, address, comparison))]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _kept(card: RunCard, address: SteeringAddress, comparison: "Comparison") -> Html:
    """Whether a saved experiment gives the same result today."""
    if not address.saved:
        return EMPTY
    try:
        saved = read(card.path, address.saved)
    except UsageError as error:
        return html('<p class="notice">{e}</p>', e=error)
    if saved.experiment.text != address.experiment:
        return EMPTY
    if saved.steered == comparison.steered[0].text:
        return html('<p class="sub">The same text as when “{n}” was saved.</p>', n=address.saved)
    return html(
        '<p class="notice">When “{n}” was saved it said: {t}</p>',
        n=address.saved,
        t=visible(saved.steered),
    )


def _save_box(card: RunCard, experiment: Experiment, comparison: "Comparison") -> None:
    def keep() -> None:
        name = st.session_state[NAME].strip()
        try:
            said = (comparison.plain[0].text, comparison.steered[0].text)
            save(card.path, name, experiment, said)
        except UsageError as error:
            st.session_state[PROBLEM] = str(error)
        else:
            change(SteeringAddress, lambda now: now.to(saved=name))
            st.session_state[NAME] = ""

    with st.container(key="steer-save", horizontal=True, vertical_alignment="bottom"):
        st.text_input("Save this experiment as", key=NAME, placeholder="a name", width=260)
        st.button("Save", on_click=keep, key="save-experiment")
    tell(st.session_state.pop(PROBLEM, ""), "save-problem")


def _shelf(card: RunCard, address: SteeringAddress) -> Html:
    """The saved experiments of the run."""
    kept = shelf(card.path)
    problems = joined(html('<p class="notice">{p}</p>', p=text) for text in kept.problems)
    if not kept.saved:
        body = html('<p class="sub">None yet: steer, then save it under a name.</p>')
    else:
        columns = [Column("Name"), Column("Saved", "UTC"), Column("Change"), Column("Says")]
        rows = (_saved_row(address, name, saved) for name, saved in kept.saved.items())
        body = table(columns, rows, "Saved experiments")
    return boxed("Saved experiments", joined([problems, body]))


def _saved_row(address: SteeringAddress, name: str, saved: Saved) -> list[Html]:
    there = address.to(experiment=saved.experiment.text, saved=name)
    shown = saved.steered if len(saved.steered) <= 90 else saved.steered[:90] + " …"
    return [
        anchor(there.href, name),
        cell(saved.saved[:16].replace("T", " ")),
        cell(strength_text(saved.experiment)),
        html('<code title="{all}">{t}</code>', all=saved.steered, t=visible(shown)),
    ]

"""Pinned latents changed in the live model: its output, compared with the graph's prediction."""

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.data.reading import stamp
from feature_browser.draw.boxes import boxed
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count, percent, real, signed
from feature_browser.draw.tables import Column, cell, table
from feature_browser.live.effects import LiveEffect, effect_request
from feature_browser.live.jobs import job_queue
from feature_browser.pages.circuit.graphs import OpenGraph
from feature_browser.pages.circuit.scene import GraphScene
from feature_browser.shell.canvas import show
from saelab.config import UsageError
from saelab.console import visible

MODES = {"ablate": "without them", "keep only": "with them alone", "scale": "scaled"}
MODE, FACTOR, ASKED = "circuit-mode", "circuit-factor", "circuit-asked"
SECONDS_BETWEEN_LOOKS = 0.5
_Asked = tuple[str, int, tuple[str, ...], str, float]


def live_section(scene: GraphScene) -> None:
    """Choose a change of the pinned latents, run it, and show the effect."""
    latents = [pin for pin in scene.pins if scene.found.graph.nodes[pin].kind == "latent"]
    mode, factor, asked = "ablate", 1.0, None
    if latents:
        mode, factor, asked = _controls(scene, latents)
    known: tuple[_Asked, str, str] | None = st.session_state.get(ASKED)
    if known is None or known[0] != asked:
        _show(_explained(scene, latents, mode))
        return
    _, name, problem = known
    if (job := job_queue().find(name)) is not None and job.open:
        _watch(name)
    elif job is not None and job.result is not None:
        effect = LiveEffect(**job.result)
        _show(effect_card(scene.found, latents, (mode, factor), effect))
    else:
        ended = "It was cancelled, or the server was started again: run it again."
        text = problem or (job.problem if job else "") or ended
        _show(html('<p class="notice" role="status">{e}</p>', e=text))


def _show(content: Html) -> None:
    show(html('<div class="page wide circuit">{c}</div>', c=content), "circuit-live-result")


def _controls(scene: GraphScene, latents: list[int]) -> tuple[str, float, _Asked]:
    """The chosen change, and what asking for it would be remembered as."""
    with st.container(key="circuit-live", horizontal=True, vertical_alignment="bottom"):
        mode = st.segmented_control(
            "Run the model", list(MODES), key=MODE, default="ablate", format_func=MODES.__getitem__,
            required=True,
        ) or "ablate"  # fmt: skip
        factor = 1.0
        if mode == "scale":
            factor = st.number_input("times", -20.0, 20.0, 2.0, 0.5, key=FACTOR, width=130)
        names = tuple(scene.found.ids[pin] for pin in latents)
        asked = (str(scene.found.path), stamp(scene.found.path), names, mode, factor)
        st.button(
            "Run in the live model", key="circuit-run", on_click=_ask, args=(scene, latents, asked)
        )
    return mode, factor, asked


def _ask(scene: GraphScene, latents: list[int], asked: _Asked) -> None:
    """Queue the change, and remember its job or why there is none."""
    *_, mode, factor = asked
    try:
        runs = [(name, _card(scene, name).path) for name in scene.found.graph.runs]
        nodes = [scene.found.graph.nodes[pin] for pin in latents]
        places = [(node.name, node.latent or 0, node.position or 0) for node in nodes]
        request = effect_request(scene.found.path, runs, places, (mode, factor))
        n = f"{count(len(latents))} latent{'s' * (len(latents) != 1)}"
        job = job_queue().submit(request, f"{n} of {scene.found.name} {MODES[mode]}")
        st.session_state[ASKED] = (asked, job.name, "")
    except UsageError as error:
        st.session_state[ASKED] = (asked, "", str(error))


@st.fragment(run_every=SECONDS_BETWEEN_LOOKS)
def _watch(name: str) -> None:
    """What the job does, until it ends, with a button to cancel it."""
    queue = job_queue()
    job = queue.find(name)
    if job is None or not job.open:
        st.rerun()
    before = [other for other in queue.open_jobs() if other is not job]
    text = f"{job.report.title} …"
    if job.state == "waiting":
        text = f"Waiting: {count(len(before))} before it. You may leave this page and come back."
    _show(html('<p class="sub" role="status">{t}</p>', t=text))
    with st.container(key="circuit-jobs"):
        st.button("Cancel", key=f"cancel-{name}", on_click=queue.cancel, args=(name,))


def _explained(scene: GraphScene, latents: list[int], mode: str) -> Html:
    if not latents:
        text = "Pin latents to take them away, keep them alone or scale them in the live model."
        if scene.pins:
            text = f"None of the pinned nodes is a latent; only latents can be changed. {text}"
        return html('<p class="sub">{t}</p>', t=text)
    text = {
        "ablate": "{n} to zero, each at its own token",
        "keep only": "all latents but {n} to zero, at every token",
        "scale": "{n} to a multiple, each at its own token",
    }[mode]
    pinned = f"{count(len(latents))} pinned latent{'s' * (len(latents) != 1)}"
    others = len(scene.pins) - len(latents)
    stay = "node stays as it is" if others == 1 else "nodes stay as they are"
    left = f" {count(others)} other pinned {stay}." if others else ""
    return html(
        '<p class="sub">Sets {what}. Errors, attention and MLPs run as they do. Needs the language '
        "model, which a process of its own loads once.{left}</p>",
        what=text.format(n=pinned), left=left,
    )  # fmt: skip


def effect_card(
    found: OpenGraph, latents: list[int], change: tuple[str, float], effect: LiveEffect
) -> Html:
    """The target's value and the next tokens, before and after."""
    mode, factor = change
    n = f"{count(len(latents))} latent{'s' * (len(latents) != 1)}"
    did = {
        "ablate": f"Without the {n}",
        "keep only": f"With the {n} alone",
        "scale": f"With the {n} times {real(factor, 1)}",
    }[mode]
    frozen = found.frozen_value(_factors(found, latents, mode, factor))
    return boxed(
        "In the live model",
        html(
            '<p class="headline" role="status">{did}, {target} goes from {before} to {after} '
            '({change})</p><p class="sub">The graph, in which attention, norms and which latents '
            "fire are held fixed, says {frozen}.</p>{table}",
            did=did, target=found.graph.facts.get("target", "the target"),
            before=real(effect.before), after=real(effect.after),
            change=signed(effect.after - effect.before), frozen=real(frozen),
            table=_token_table(effect) if effect.tokens else EMPTY,
        ),
    )  # fmt: skip


def _factors(found: OpenGraph, latents: list[int], mode: str, factor: float) -> dict[int, float]:
    if mode != "keep only":
        return dict.fromkeys(latents, 0.0 if mode == "ablate" else factor)
    # Latents that the graph left out are latents, too.
    gone = {n for n, node in enumerate(found.graph.nodes) if node.kind in ("latent", "rest")}
    return dict.fromkeys(gone - set(latents), 0.0)


def _token_table(effect: LiveEffect) -> Html:
    columns = [
        Column("Next token"),
        Column("Probability", numeric=True),
        Column("then", numeric=True, saved="probability then"),
        Column("Logit", numeric=True),
        Column("then", numeric=True, saved="logit then"),
        Column("Change", "of the logit", numeric=True),
    ]
    rows = [
        [
            html("<code>{t}</code>", t=visible(text).strip() or "␣"),
            cell(percent(p)),
            cell(percent(q)),
            cell(real(a)),
            cell(real(b)),
            html(
                '<span class="{s}-text">{d}</span>',
                s="neg" if b < a else "pos",
                d=cell(signed(b - a)),
            ),
        ]
        for text, p, q, a, b in effect.tokens
    ]
    return joined([table(columns, rows, "Next tokens before and after the change")])


def _card(scene: GraphScene, sae: str) -> RunCard:
    card = scene.names.run(sae)
    if card is None:
        raise UsageError(
            f"The graph has latents of {sae}, but no run of that name is below "
            f"{scene.names.catalogue.root}; put it there to run it live."
        )
    return card

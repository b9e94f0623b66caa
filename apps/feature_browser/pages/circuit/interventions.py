"""Pinned latents changed in the live model: its output, compared with the graph's prediction."""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.data.reading import stamp
from feature_browser.draw.boxes import boxed
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count, percent, real, signed
from feature_browser.draw.tables import Column, cell, table
from feature_browser.live.model import live_run, lock_of
from feature_browser.pages.circuit.graphs import OpenGraph
from feature_browser.pages.circuit.scene import GraphScene
from feature_browser.shell.canvas import show
from saelab.config import UsageError
from saelab.console import visible

if TYPE_CHECKING:
    from saelab.host.host import Host

MODES = {"ablate": "without them", "keep only": "with them alone", "scale": "scaled"}
MODE, FACTOR, ASKED = "circuit-mode", "circuit-factor", "circuit-asked"
N_TOKENS = 8
_LATENT = re.compile(r"(.+) (\d+) @(\d+)")


@dataclass(frozen=True)
class LiveEffect:
    """The effect of a change in the live model.

    Attributes:
        before, after: the target's value.
        tokens: the most likely next tokens before or after: text, probability and logit before and
            after.
    """

    before: float
    after: float
    tokens: list[tuple[str, float, float, float, float]]


def live_section(scene: GraphScene) -> None:
    """Choose a change of the pinned latents, run it, and show the effect."""
    latents = [pin for pin in scene.pins if scene.found.graph.nodes[pin].kind == "latent"]
    content = _explained(scene, latents, "ablate")
    if latents:
        mode, factor, ran = _controls(scene, latents)
        content = _explained(scene, latents, mode)
        if ran:
            content = _answer(scene, latents, mode, factor)
    show(html('<div class="page wide circuit">{c}</div>', c=content), "circuit-live-result")


def _controls(scene: GraphScene, latents: list[int]) -> tuple[str, float, bool]:
    """The chosen change, and whether it was submitted unchanged."""
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
        st.button("Run in the live model", key="circuit-run", on_click=_ask, args=(asked,))
    return mode, factor, st.session_state.get(ASKED) == asked


def _ask(asked: tuple[object, ...]) -> None:
    st.session_state[ASKED] = asked


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
        "model, which is loaded once.{left}</p>",
        what=text.format(n=pinned), left=left,
    )  # fmt: skip


def _answer(scene: GraphScene, latents: list[int], mode: str, factor: float) -> Html:
    try:
        lives = tuple((name, _card(scene, name)) for name in scene.found.graph.runs)
        nodes = [scene.found.graph.nodes[pin] for pin in latents]
        places = tuple((node.name, node.latent or 0, node.position or 0) for node in nodes)
        effect = _effect(
            (str(scene.found.path), stamp(scene.found.path)),
            places,
            (mode, factor),
            _found=scene.found,
            _cards=lives,
        )
    except UsageError as error:
        return html('<p class="notice" role="status">{e}</p>', e=error)
    return effect_card(scene.found, latents, (mode, factor), effect)


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
        Column("then", numeric=True),
        Column("Logit", numeric=True),
        Column("then", numeric=True),
        Column("Change", numeric=True),
    ]
    rows = [
        [
            html("<code>{t}</code>", t=visible(text).strip() or "␣"),
            cell(percent(p)),
            cell(percent(q)),
            cell(real(a)),
            cell(real(b)),
            html('<span class="{s}-text">{d}</span>', s="neg" if b < a else "pos", d=signed(b - a)),
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


@st.cache_data(max_entries=64, show_spinner="Running the model …")
def _effect(
    graph: tuple[str, int],
    places: tuple[tuple[str, int, int], ...],
    change: tuple[str, float],
    *,
    _found: OpenGraph,
    _cards: tuple[tuple[str, RunCard], ...],
) -> LiveEffect:
    del graph  # part of the cache's key only
    lives = [(name, live_run(card)) for name, card in _cards]
    return measure(_found, lives, places, change)


def measure(
    found: OpenGraph,
    lives: list[tuple[str, "Host"]],
    places: tuple[tuple[str, int, int], ...],
    change: tuple[str, float],
) -> LiveEffect:
    """Run the graph's prompt unchanged and changed.

    Raises:
        UsageError: the runs are of several models, or the graph's tokens are not the model's.
    """
    # It imports torch.
    from saelab.analysis.circuits.intervene import Change, intervene
    from saelab.host.host import by_layer

    hosts = by_layer([replace(live, name=name) for name, live in lives])
    first = hosts[0]
    if any(host.lm is not first.lm for host in hosts):
        raise UsageError("The graph's SAEs are of runs of several language models by now.")
    facts = found.graph.facts
    tokens = _tokens(found, first)
    watched = _LATENT.fullmatch(str(facts.get("target"))) if facts.get("token") is None else None
    with lock_of(first.lm):
        result = intervene(
            first.lm,
            hosts,
            tokens,
            Change(places, change[0], change[1]),  # pyright: ignore[reportArgumentType]
            position=found.graph.nodes[-1].position or 0,
            watched=(watched[1], int(watched[2]), int(watched[3])) if watched else None,
        )
    if result.latent is not None:
        return LiveEffect(*result.latent, [])
    ends = (_logit_value(facts, logits) for logits in (result.before, result.after))
    return LiveEffect(next(ends), next(ends), _likeliest(first, result.before, result.after))


def _tokens(found: OpenGraph, live: "Host") -> Any:  # noqa: ANN401 - torch is imported late
    import torch

    ids = found.graph.facts.get("token_ids")
    texts = found.graph.tokens
    vocabulary = live.lm.info.d_vocab
    whole = isinstance(ids, list) and all(
        isinstance(i, int) and 0 <= i < vocabulary for i in ids
    )  # fmt: skip
    names = [live.lm.tokenizer.token(i) for i in ids or []] if whole else []
    if not whole or len(names) != len(texts) or not all(map(_same, names, texts)):
        raise UsageError(
            f"The tokens of {found.path} are not those of {live.lm.info.name}; run "
            "`saelab circuit` again."
        )
    return torch.tensor(ids, device=live.lm.device)


def _same(name: str, text: str) -> bool:
    """Whether a token has this name, or had it in graphs older than distinct names."""
    return text in (name, name.strip(" ")) or "\ufffd" in text


def _logit_value(facts: dict[str, Any], logits: Any) -> float:  # noqa: ANN401
    """The graph's target computed from logits: one minus another, or minus the mean."""
    known = [facts.get(name) for name in ("token", "against")]
    token, against = (i if isinstance(i, int) and 0 <= i < len(logits) else None for i in known)
    if token is None:
        raise UsageError("The graph does not say which token it explains; compute it again.")
    base = logits.mean() if against is None else logits[against]
    return float(logits[token] - base)


def _likeliest(
    live: "Host",
    before: Any,  # noqa: ANN401
    after: Any,  # noqa: ANN401
) -> list[tuple[str, float, float, float, float]]:
    p, q = before.softmax(-1), after.softmax(-1)
    best = p.maximum(q).topk(min(N_TOKENS, len(p))).indices.tolist()
    return [
        (
            live.lm.tokenizer.token(i),
            float(p[i]),
            float(q[i]),
            float(before[i]),
            float(after[i]),
        )
        for i in best
    ]

"""Try it: the run's latents on any text, and the difference of two texts."""

import numpy as np
import streamlit as st
from numpy import ndarray

from feature_browser.data.address import link, setting
from feature_browser.data.catalogue import OWN_ARRAYS, Catalogue, RunCard
from feature_browser.data.suggestions import suggestions
from feature_browser.draw.boxes import alone, boxed, message
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count, percent, real
from feature_browser.draw.tables import anchor
from feature_browser.live.chat import switch
from feature_browser.live.prompt import PromptReading
from feature_browser.pages import Page
from feature_browser.pages.try_it.address import TryAddress
from feature_browser.pages.try_it.bench import Bench, open_bench, read
from feature_browser.pages.try_it.by_token import by_choice, token_table
from feature_browser.pages.try_it.code import try_elsewhere
from feature_browser.pages.try_it.lists import Found, found
from feature_browser.pages.try_it.strip import strip, token_tip
from feature_browser.pages.try_it.tables import latents_table, pair_table
from feature_browser.shell.canvas import change, go_to, show
from saelab.config import UsageError
from saelab.console import visible

PROMPT, SECOND, LAST = "try-prompt", "try-second", "try-last-prompt"


def try_view(_: Catalogue, card: RunCard, address: TryAddress) -> None:
    """Draw the run's latents on the prompts of `address`."""
    if card.model == OWN_ARRAYS:
        show(alone(_no_model(card)), "try")
        return
    address = _remembered(card, address)
    _controls(card, address)
    if not address.prompt.strip():
        show(alone(_empty(card)), "try")
        return
    try:
        bench = open_bench(card, address)
        texts = [text for text in (address.prompt, address.second) if text.strip()]
        readings = [read(bench, text, address.target) for text in texts]
    except UsageError as error:
        show(alone(message("This cannot be read", str(error))), "try")
        return
    draw = _one if len(readings) == 1 else _two
    notices = joined(html('<p class="notice">{n}</p>', n=text) for text in bench.notices)
    content = html('<div class="page wide try">{n}{c}</div>', n=notices, c=draw(bench, readings))
    show(content, "try")


def _remembered(card: RunCard, address: TryAddress) -> TryAddress:
    """The address with the model's last prompt, if the address has none."""
    key = f"{LAST}:{card.model}"
    if not address.prompt and not address.second and st.session_state.get(key):
        prompt, chat = st.session_state[key]
        address = address.to(prompt=prompt, chat=chat)
        go_to(address)
    st.session_state[key] = (address.prompt, address.chat) if address.prompt else None
    return address


def _controls(card: RunCard, address: TryAddress) -> None:
    for key, text in ((PROMPT, address.prompt), (SECOND, address.second)):
        if st.session_state.get(key) != text:
            st.session_state[key] = text
    with st.container(key="controls", horizontal=True):
        for key, label in ((PROMPT, "Prompt"), (SECOND, "Compare with (optional)")):
            st.text_area(label, key=key, height=68, on_change=_typed, placeholder="any text")
        switch(card, address.chat, _switched)


def _typed() -> None:
    prompt, second = st.session_state[PROMPT], st.session_state[SECOND]
    for key in [key for key in st.session_state if str(key).startswith(LAST)]:
        # An emptied field stays empty.
        del st.session_state[key]
    change(TryAddress, lambda now: now.to(prompt=prompt, second=second, pos="", page=1))


def _switched(chat: str) -> None:
    change(TryAddress, lambda now: now.to(chat=chat, pos="", page=1))


def _no_model(card: RunCard) -> Html:
    return message(
        "There is no model to try",
        f"{card.name} was trained on arrays, not on a language model, so there is no text that its "
        "latents could read.",
    )


def _empty(card: RunCard) -> Html:
    texts = suggestions(card)
    buttons = joined(
        html('<button class="suggestion" data-set="{s}">{t}</button>', s=setting(prompt=t), t=t)
        for t in texts
    )
    return message(
        "What fires on your text?",
        f"Type any text that {card.model} can read: each token shows its latents. With a second "
        "text the two are compared. The first time, loading the model takes some seconds.",
        after=html('<div class="suggestions">{b}</div>', b=buttons) if texts else EMPTY,
    )


def _one(bench: Bench, readings: list[PromptReading]) -> Html:
    (reading,) = readings
    at, problem = _position(bench.address.pos, reading)
    notice = html('<p class="notice">{p}</p>', p=problem) if problem else EMPTY
    latents = found(reading, bench.density, at)
    body = [
        notice,
        _headline(reading, latents, at),
        boxed(
            "Prompt",
            joined([_strip(bench, reading, at), _next(bench, reading)]),
            note=_lit(bench, reading),
        ),
        by_choice(bench),
        token_table(bench, reading)
        if bench.address.by and at is None
        else latents_table(bench, reading, latents, at),
    ]
    return joined(body)


def _two(bench: Bench, readings: list[PromptReading]) -> Html:
    first, second = (found(reading, bench.density) for reading in readings)
    both = np.intersect1d(first.latent, second.latent)
    title = (
        f"{count(len(both))} latents fire in both, {count(len(first) - len(both))} only in the "
        f"first, {count(len(second) - len(both))} only in the second"
    )
    cards = [
        boxed(name, _strip(bench, reading, None, pick=False), note=_lit(bench, reading))
        for name, reading in zip(("First", "Second"), readings, strict=True)
    ]
    return html(
        '<h1 class="headline">{title}</h1><div class="two even">{cards}</div>{table}',
        title=title, cards=joined(cards), table=pair_table(bench, readings, (first, second)),
    )  # fmt: skip


def _position(text: str, reading: PromptReading) -> tuple[int | None, str]:
    """The picked position, and what is wrong with it, if anything."""
    if not text:
        return None, ""
    last = len(reading.tokens) - 1
    if not text.isdecimal() or len(text) > 9 or int(text) > last:
        return None, f"There is no token {text[:20]}; the prompt has 0 to {last}."
    return int(text), ""


def _headline(reading: PromptReading, latents: Found, at: int | None) -> Html:
    if at is not None:
        return html(
            '<h1 class="headline">{n} latents fire on “{token}”</h1><p class="sub">position {at} · '
            '<button class="plain" data-set="pos=&amp;page=">show all tokens</button></p>',
            n=count(len(latents)), token=visible(reading.tokens[at]).strip(), at=at,
        )  # fmt: skip
    skipped = sum(map(bool, reading.unread))
    read = len(reading.unread) - skipped
    not_read = f"{skipped} token{'s' * (skipped != 1)} not read, since training left such ones out"
    aside = f" · {not_read}" if skipped else ""
    return html(
        '<h1 class="headline">{n} latents fire on {read} tokens</h1><p class="sub">{l0} a token'
        "{aside} · mean log-probability of a token {nats} nats</p>",
        n=count(len(latents)), read=count(read), aside=aside,
        l0=real(len(reading.value) / max(1, read), 1), nats=real(_mean(reading.log_prob)),
    )  # fmt: skip


def _mean(values: ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _strip(bench: Bench, reading: PromptReading, at: int | None, *, pick: bool = True) -> Html:
    lit = _values(reading, bench.lit)
    strongest = max(map(abs, lit.values()), default=0.0)
    if bench.maximum is not None and bench.lit is not None:
        strongest = max(strongest, float(bench.maximum[bench.lit]))
    sort = bench.address.sort if bench.address.sort in {"rarity", "attribution"} else "value"

    def tip(position: int) -> str:
        here = found(reading, bench.density, position)
        return token_tip(reading, position, here, bench.names.name, sort)

    return strip(reading, lit, strongest, tip, at=at, pick=pick)


def _values(reading: PromptReading, latent: int | None) -> dict[int, float]:
    if latent is None:
        return {}
    here = reading.latent == latent
    return dict(zip(reading.position[here].tolist(), reading.value[here].tolist(), strict=True))


def _lit(bench: Bench, reading: PromptReading) -> Html:
    """The latent that shades the strip, and how to unselect it."""
    if bench.lit is None:
        return html('<span class="hint">{t}</span>', t="hover: its latents · click: list them")
    n = len(_values(reading, bench.lit))
    name = bench.names.name(bench.lit)
    told = f"fires on {count(n)}" if n else "does not fire here"
    steer = link(
        "steering", run=bench.address.run, part="live", latent=bench.lit,
        prompt=bench.address.prompt, chat=bench.address.chat,
    )  # fmt: skip
    return html(
        '<span class="hint always">lit by latent <b>{latent}</b>{name}: {told} · '
        '<a href="{steer}">steer with it</a> · '
        '<button class="plain" data-set="latent=">stop</button></span>',
        latent=bench.lit, name=f" ({name})" if name else "", told=told, steer=steer,
    )  # fmt: skip


def _next(bench: Bench, reading: PromptReading) -> Html:
    """The most likely next tokens; effects are measured on the selected one."""
    why = link(
        "circuit", run=bench.address.run, part="explain", prompt=bench.address.prompt,
        chat=bench.address.chat, target=reading.target.text,
    )  # fmt: skip
    shown = list(reading.predicted)
    if reading.target.token not in {one.token for one in shown}:
        shown.append(reading.target)
    chips = joined(
        html(
            '<button class="next" aria-pressed="{now}" data-set="{set}">{text} <b>{p}</b></button>',
            now="true" if one.token == reading.target.token else "false",
            set=setting(target=one.text), text=visible(one.text), p=percent(one.probability),
        )
        for one in shown
    )  # fmt: skip
    return html(
        '<div class="following"><span class="sub">What comes next{effects}</span>{chips}{why}'
        "</div>",
        effects="; effects are on the pressed one's logit" if reading.has_effects else "",
        chips=chips,
        why=anchor(why, "why? explain it") if bench.card.in_circuits else EMPTY,
    )


PAGE = Page(
    "Try it",
    TryAddress,
    try_view,
    asks="Which latents fire on my own text?",
    elsewhere=try_elsewhere,
)

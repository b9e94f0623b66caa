"""One latent: its match, its firing, what it writes, and the text that it fires on."""

import streamlit as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from feature_browser.data.catalogue import Catalogue, RunCard, latent_number
from feature_browser.data.elsewhere import NOWHERE, Elsewhere, command, python
from feature_browser.data.labels import LatentNames
from feature_browser.data.reading import OpenRun, list_runs, open_run
from feature_browser.draw.annotate import Keeper
from feature_browser.draw.boxes import alone, boxed, message, no_such_latent
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count
from feature_browser.draw.pictures import histogram, logit_effects
from feature_browser.pages import Page
from feature_browser.pages.latent import cards
from feature_browser.pages.latent.address import LatentAddress
from feature_browser.pages.latent.cards import LatentScene
from feature_browser.pages.latent.explain_key import explain, explain_button
from feature_browser.pages.latent.meaning_card import meaning
from feature_browser.pages.latent.plane_card import plane_card
from feature_browser.pages.latent.steering_card import steering
from feature_browser.shell.canvas import change, go_to, show
from feature_browser.shell.launch import runs_directory
from saelab.config import UsageError

GO_TO = "go-to-latent"
MOST_LINKS = 24


def latent_view(_: Catalogue, card: RunCard, address: LatentAddress) -> None:
    """Draw the page of the latent that `address` names."""
    run = open_run(card)
    if address.latent is None:
        address = address.to(latent=run.telling_latent())
        go_to(address)
    number = latent_number(address.latent, run.card.d_sae)
    wanted = _controls(run, address, number)
    if number is None or number not in run.features.latents:
        show(alone(_gone(run, address, number)), "latent")
        return
    if wanted:
        explain(run.card, number)
    st.set_page_config(page_title=f"{_title(run, number)} · saelab")
    keep = Keeper.of(run.card)
    show(run.page(address.to(latent=number), draw), "latent", latent=number, on_edit=keep)


def draw(run: OpenRun, address: LatentAddress) -> Html:
    """The page of the latent that `address` names, which must exist."""
    return page(LatentScene(run, run.features[int(address.latent or 0)], address))


def latent_page(request: Request) -> PlainTextResponse:
    """The HTML of the latent that the query string names; 404 with a sentence if there is none.

    The canvas shows it without running the whole script, which takes ten times as long. It is sent
    as plain text, since only the canvas shows it.
    """
    address = LatentAddress.of(request.query_params)
    # Runs are looked up in the catalogue, so no path is made from the request.
    catalogue = list_runs(runs_directory())
    card = catalogue.runs.get(address.run or "")
    if card is None:
        missing = f"There is no run {address.run}."
        return PlainTextResponse(catalogue.damaged.get(address.run or "", missing), 404)
    try:
        run = open_run(card)
        number = latent_number(address.latent, run.card.d_sae)
        if number is None:
            return PlainTextResponse(f"There is no latent {address.latent}.", 404)
        content = run.page(address.to(latent=number), draw)
    except UsageError as error:
        return PlainTextResponse(str(error), 404)
    return PlainTextResponse(content, headers={"Cache-Control": "no-store"})


def _title(run: OpenRun, latent: int) -> str:
    name = LatentNames.of(run.card).name(latent)
    return f"{latent} · {name}" if name else str(latent)


def _controls(run: OpenRun, address: LatentAddress, number: int | None) -> bool:
    """Draw the buttons; whether the latent is to be explained."""
    last = run.card.d_sae - 1
    around = [None if number is None else run.beside(number, step) for step in (-1, 1)]
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="controls"):
        _step_button("Previous", around[0], "K")
        _step_button("Next", around[1], "J")
        st.button("Random", on_click=_random, args=(run,), shortcut="x", key="random")
        st.text_input(
            "Go to latent",
            key=GO_TO,
            placeholder=f"G: go to 0 … {last}",
            on_change=_typed,
            label_visibility="collapsed",
            width=150,
        )
        wanted = explain_button(run.card)
        show(cards.choices(address), "context")
    return wanted


def _step_button(label: str, latent: int | None, key: str) -> None:
    # The canvas handles the key and the click: it shows the page before the script has run.
    st.button(
        f"{label}\u2002:gray[:small[{key}]]",
        on_click=_turn,
        args=(latent,),
        disabled=latent is None,
        key=label.lower(),
    )


def _turn(latent: int) -> None:
    change(LatentAddress, lambda now: now.to(latent=latent))


def _random(run: OpenRun) -> None:
    change(LatentAddress, lambda now: now.to(latent=run.random_latent()))


def _typed() -> None:
    if wanted := st.session_state[GO_TO].strip():
        change(LatentAddress, lambda now: now.to(latent=wanted))
    st.session_state[GO_TO] = ""


def page(scene: LatentScene) -> Html:
    """The whole page of one latent."""
    aside = [cards.identity(scene), meaning(scene)]
    if scene.record.n_fired:
        aside.append(cards.firing(scene))
    aside += [steering(scene), cards.heads(scene), cards.neighbours(scene), cards.reproduce(scene)]
    return html(
        '<div class="page latent" data-latent="{n}" data-latents="{all}"{numbers}><aside>{aside}'
        "</aside><div>{body}</div></div>",
        n=scene.record.latent,
        all=scene.run.card.d_sae,
        numbers=_numbers(scene.run),
        aside=joined(aside),
        body=_evidence(scene) if scene.record.n_fired else _dead(scene),
    )


def _numbers(run: OpenRun) -> Html:
    """Which latents the keys J and K turn to, if these are not all."""
    if run.features.numbers is None:
        return EMPTY
    return html(' data-numbers="{n}"', n=" ".join(map(str, run.features.latents)))


def _gone(run: OpenRun, address: LatentAddress, number: int | None) -> Html:
    """Why there is nothing to show of the latent that is asked for."""
    if number is None:
        return no_such_latent(address.latent, run.card.d_sae, address.to(latent=0).href)
    links = joined(
        html('<a href="{h}">{n}</a> ', h=address.to(latent=n).href, n=n)
        for n in run.features.latents[:MOST_LINKS]
    )
    return message(
        f"No features of latent {number}",
        f"They were collected for {count(len(run.features))} chosen latents. For this one, run",
        command=f"saelab features {run.card.path.as_posix()} --latents {number}",
        after=html("<p>There are those of {links}</p>", links=links),
    )


def _evidence(scene: LatentScene) -> Html:
    return joined([_pictures(scene), *_texts(scene)])


def _pictures(scene: LatentScene) -> Html:
    title = "Activations, both signs" if scene.record.n_negative else "Activations"
    hints = (
        "tokens, log scale · drag to filter the examples",
        "direct path, per unit of activation",
    )
    if scene.run.card.has_forms:
        written = plane_card(scene)
    else:
        effects = logit_effects(scene.record)
        written = boxed("What it writes to the logits", effects, hint=hints[1])
    return html(
        '<div class="two">{activations}{written}</div>',
        activations=boxed(title, histogram(scene.record), hint=hints[0]),
        written=written,
    )


def _texts(scene: LatentScene) -> list[Html]:
    if scene.address.show == "strata":
        return [cards.stratum(scene, number) for number in range(len(scene.record.strata))]
    return _silent(scene) if scene.address.show == "silent" else _strongest(scene)


def _strongest(scene: LatentScene) -> list[Html]:
    record = scene.record
    positive = record.n_fired - record.n_negative
    shown = {kind: len(record.examples.get(kind, [])) for kind in ("top", "negative", "random")}
    return [
        cards.examples(
            scene,
            "top",
            "Top examples",
            f"{shown['top']} of {count(positive)} firings, the strongest of each text",
        ),
        cards.examples(
            scene,
            "negative",
            "Negative side",
            f"{shown['negative']} of {count(record.n_negative)} firings below zero",
        ),
        cards.examples(
            scene,
            "random",
            "Random examples",
            f"a fair sample of {shown['random']} of all {count(record.n_fired)} firings",
        ),
    ]


def _silent(scene: LatentScene) -> list[Html]:
    return [
        cards.examples(
            scene,
            "near_miss",
            "Near misses",
            "texts on which it never fires; the pre-activation as a share of what would have",
        ),
        cards.examples(
            scene, "silent", "Silent texts", "texts on which it never fires, a token at random"
        ),
    ]


def _dead(scene: LatentScene) -> Html:
    record = scene.record
    silent = (
        f"It never fired on the {count(record.n_tokens)} tokens that were read, so there are no "
    )
    title = "This latent is dead"
    if scene.run.card.has_forms:
        note = message(title, f"{silent}activations and no examples.")
        return joined([note, plane_card(scene)])
    note = message(
        title,
        f"{silent}activations and no examples. What its decoder row would write is still shown.",
    )
    effects = boxed("What it would write to the logits", logit_effects(record), note=EMPTY)
    return joined([note, effects])


def latent_elsewhere(card: RunCard, address: LatentAddress) -> Elsewhere:
    """Steering with the latent, and its figure; nothing of a latent that cannot be shown."""
    try:
        run = open_run(card)
    except UsageError:
        return NOWHERE
    named = latent_number(address.latent, card.d_sae)
    number = run.telling_latent() if address.latent is None else named
    if number is None or number not in run.features.latents:
        return NOWHERE
    return Elsewhere(
        command("steer", card.path, "--latents", number, "--strength", 4),
        python(
            card,
            "from saelab import Features",
            "",
            "latent = Features.of($RUN)[" + str(number) + "]",
            "latent.figure()",
        ),
    )


PAGE = Page(
    "Latent",
    LatentAddress,
    latent_view,
    needs_features=True,
    asks="What does one latent fire on, and what does it do?",
    routes={"/latent": latent_page},
    elsewhere=latent_elsewhere,
)

"""One latent: what it matches, how it fires, what it writes, and the text it fires on."""

from functools import partial

import streamlit as st

from feature_browser.data.labels import Names, labels_of
from feature_browser.data.reading import OpenRun
from feature_browser.draw import annotate
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count
from feature_browser.draw.pictures import histogram, logit_effects
from feature_browser.pages.latent import cards
from feature_browser.pages.latent.cards import Scene
from feature_browser.pages.latent.steering_card import steering
from feature_browser.shell.canvas import go_to, here, show
from feature_browser.shell.chrome import alone, message
from feature_browser.shell.place import Place

GO_TO = "go-to-latent"


def latent_view(run: OpenRun, place: Place) -> None:
    """Draw the page of the latent that `place` names."""
    if place.latent is None:
        place = place.to(latent=run.telling_latent())
        go_to(place)
    number = latent_number(place.latent, len(run.features))
    _controls(run, place, number)
    if number is None:
        show(alone(_no_such_latent(place, len(run.features))), "latent")
        return
    st.set_page_config(page_title=f"{_title(run, number)} · saelab")
    if problem := annotate.problem():
        show(alone(html('<p class="notice">{p}</p>', p=problem)), "note-problem")
    keep = partial(annotate.keep, run.card, len(run.features))
    show(run.page(place.to(latent=number), draw), "latent", latent=number, on_edit=keep)


def draw(run: OpenRun, place: Place) -> Html:
    """The page of the latent that `place` names, which must exist."""
    return page(Scene(run, run.features[int(place.latent or 0)], place))


def _title(run: OpenRun, latent: int) -> str:
    name = Names(labels_of(run.card), run.known).name(latent)
    return f"{latent} · {name}" if name else str(latent)


def latent_number(text: str | None, n_latents: int) -> int | None:
    """The latent that `text` names, or None if there is no such latent."""
    # isdecimal also accepts other scripts' digits, and so does int.
    if text is None or not text.strip().isdecimal():
        return None
    number = int(text)
    return number if number < n_latents else None


def _controls(run: OpenRun, place: Place, number: int | None) -> None:
    last = len(run.features) - 1
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="controls"):
        _step_button("Previous", -1, "K", disabled=not number)
        _step_button("Next", 1, "J", disabled=number is None or number == last)
        st.button("Random", on_click=_random, args=(run,), shortcut="x", key="random")
        st.text_input(
            "Go to latent",
            key=GO_TO,
            placeholder=f"G: go to 0 … {last}",
            on_change=_typed,
            label_visibility="collapsed",
            width=150,
        )
        show(cards.choices(place), "context")


def _step_button(label: str, by: int, key: str, *, disabled: bool) -> None:
    # The canvas takes the key, and the click too: it shows the page before the script has run.
    st.button(
        f"{label}\u2002:gray[:small[{key}]]",
        on_click=_step,
        args=(by,),
        disabled=disabled,
        key=label.lower(),
    )


def _step(by: int) -> None:
    place = here()
    go_to(place.to(latent=int(place.latent or 0) + by))


def _random(run: OpenRun) -> None:
    go_to(here().to(latent=run.random_latent()))


def _typed() -> None:
    if wanted := st.session_state[GO_TO].strip():
        go_to(here().to(latent=wanted))
    st.session_state[GO_TO] = ""


def _no_such_latent(place: Place, n_latents: int) -> Html:
    return message(
        f"There is no latent {place.latent}",
        f"This run's SAE has {count(n_latents)} latents, numbered 0 to {n_latents - 1}.",
        after=html('<p><a href="{h}">Show latent 0</a></p>', h=place.to(latent=0).href),
    )


def page(scene: Scene) -> Html:
    """The whole page of one latent."""
    aside = [cards.identity(scene)]
    if scene.record.n_fired:
        aside.append(cards.firing(scene))
    aside += [steering(scene), cards.heads(scene), cards.neighbours(scene), cards.reproduce(scene)]
    return html(
        '<div class="page latent" data-latent="{n}" data-latents="{all}"><aside>{aside}</aside>'
        "<div>{body}</div></div>",
        n=scene.record.latent,
        all=len(scene.run.features),
        aside=joined(aside),
        body=_evidence(scene) if scene.record.n_fired else _dead(scene),
    )


def _evidence(scene: Scene) -> Html:
    return joined([_pictures(scene), *_texts(scene)])


def _pictures(scene: Scene) -> Html:
    title = "Activations, both signs" if scene.record.n_negative else "Activations"
    hint = html('<span class="hint">tokens, log scale · drag to filter the examples</span>')
    effects_hint = html('<span class="hint">direct path, per unit of activation</span>')
    return html(
        '<div class="two">{activations}{effects}</div>',
        activations=cards.card(title, histogram(scene.record), note=hint),
        effects=cards.card(
            "What it writes to the logits", logit_effects(scene.record), note=effects_hint
        ),
    )


def _texts(scene: Scene) -> list[Html]:
    if scene.place.show == "strata":
        return [cards.stratum(scene, number) for number in range(len(scene.record.strata))]
    return _silent(scene) if scene.place.show == "silent" else _strongest(scene)


def _strongest(scene: Scene) -> list[Html]:
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


def _silent(scene: Scene) -> list[Html]:
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


def _dead(scene: Scene) -> Html:
    record = scene.record
    note = message(
        "This latent never fires",
        f"It was silent on all {count(record.n_tokens)} tokens that were read, so there are no "
        "activations and no examples. What its decoder row would write is still shown.",
    )
    effects = cards.card("What it would write to the logits", logit_effects(record), note=EMPTY)
    return joined([note, effects])

"""A latent of attention heads: which heads and source tokens make it fire, and what does that.

`?trail=` has the latents that were followed from the page's own, RUN:LATENT@POSITION with bars
between them; the text stays that of the page's own latent.
"""

import streamlit as st

from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.reading import OpenRun, open_run
from feature_browser.draw.left_out import left_out_line
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import activation, count
from feature_browser.draw.tokens import TextStyle, example_text
from feature_browser.live.chat import noted, switch
from feature_browser.live.model import live_run
from feature_browser.pages.attention import part_cards as parts_of
from feature_browser.pages.attention import source_cards as cards
from feature_browser.pages.attention.scene import Scene
from feature_browser.pages.attention.study import Study, prompt_ids, strongest, study
from feature_browser.pages.attention.trail import (
    Step,
    chosen_runs,
    reads_heads,
    runs_before,
    trail_of,
)
from feature_browser.pages.latent.cards import card as boxed
from feature_browser.pages.latent.view import latent_number
from feature_browser.shell.canvas import STATIC, go_to, here, show
from feature_browser.shell.chrome import alone, message
from feature_browser.shell.place import Place
from saelab.analysis.records import Example
from saelab.config import UsageError

GO_TO, PROMPT = "attention-latent", "attention-prompt"
N_EXAMPLES = 6


def attention_view(catalogue: Catalogue, card: RunCard, place: Place) -> None:
    """Draw the page of the latent that `place` names."""
    st.html(STATIC / "page_circuit.css")
    if not reads_heads(card):
        show(alone(_no_heads(catalogue, card)), "attention")
        return
    run = open_run(card) if card.features_path.is_file() else None
    if place.latent is None:
        place = place.to(latent=run.telling_latent() if run else 0)
        go_to(place)
    number = latent_number(place.latent, card.d_sae)
    _controls(card, place)
    if number is None:
        show(alone(_no_such_latent(card, place)), "attention")
        return
    before = runs_before(catalogue, card)
    chosen = [card, *chosen_runs(before, place)]
    runs = {one.name: one for one in chosen}
    scene = Scene(card, runs, place, trail_of(place.trail, list(runs)))
    shares = run.features[number].head_weights if run else []
    aside = [
        _identity(scene, number),
        cards.heads_card(shares, scene),
        cards.beside_card(scene, before),
    ]
    show(
        html(
            '<div class="page latent attention"><aside>{aside}</aside><div>{texts}{body}</div>'
            "</div>",
            aside=joined(aside), texts=_texts(run, scene, number),
            body=joined([_answer(scene, run, number), _noted(scene)]),
        ),
        "attention",
    )  # fmt: skip


def _no_heads(catalogue: Catalogue, card: RunCard) -> Html:
    others = [other for other in catalogue.runs.values() if reads_heads(other)]
    links = joined(
        html('<a href="{h}">{n}</a> ', h=Place(view="attention", run=other.name).href, n=other.name)
        for other in others
    )
    after = html("<p>Runs that do: {links}</p>", links=links) if others else EMPTY
    return message(
        "This page is about attention heads",
        f"It needs a run whose SAE reads attention heads (a site blocks.N.attn.hook_z); "
        f"{card.name} reads {card.site}.",
        command="saelab train topk --activations DIR --site blocks.N.attn.hook_z --out RUN",
        after=after,
    )


def _no_such_latent(card: RunCard, place: Place) -> Html:
    return message(
        f"There is no latent {place.latent}",
        f"This run's SAE has {count(card.d_sae)} latents, numbered 0 to {card.d_sae - 1}.",
        after=html('<p><a href="{h}">Show latent 0</a></p>', h=place.to(latent=0).href),
    )


def _controls(card: RunCard, place: Place) -> None:
    if st.session_state.get(PROMPT, "") != place.prompt:
        st.session_state[PROMPT] = place.prompt
    with st.container(key="controls", horizontal=True, vertical_alignment="center"):
        st.text_input(
            "Latent", key=GO_TO, placeholder=f"latent, 0 … {card.d_sae - 1}",
            on_change=_typed_latent, label_visibility="collapsed", width=170,
        )  # fmt: skip
        st.text_input(
            "Prompt", key=PROMPT, placeholder="Type a prompt to read it instead of an example",
            on_change=_typed_prompt, label_visibility="collapsed", width=560, max_chars=20_000,
        )  # fmt: skip
        switch(card, place)


def _typed_latent() -> None:
    if wanted := st.session_state[GO_TO].strip():
        kept = here()
        place = kept.visit("attention")
        go_to(place.to(latent=wanted, prompt=kept.prompt, chat=kept.chat, beside=kept.beside))
    st.session_state[GO_TO] = ""


def _typed_prompt() -> None:
    go_to(here().to(prompt=st.session_state[PROMPT], pos="", trail="", source="", head=""))


def _identity(scene: Scene, number: int) -> Html:
    title = scene.title(scene.card.name, number)
    page = Place(run=scene.card.name, latent=str(number))
    return html(
        '<section class="card"><h1 aria-live="polite">{n}</h1><p class="lead">{title}</p>'
        '<p class="leads"><a href="{page}">its page</a>{step}</p></section>',
        n=number, title=title, page=page.href, step=_neighbours(scene, number),
    )  # fmt: skip


def _neighbours(scene: Scene, number: int) -> Html:
    place_ = scene.place
    kept = place_.visit("attention").to(
        prompt=place_.prompt, chat=place_.chat, beside=place_.beside
    )
    return joined(
        html('<a href="{h}">{t}</a>', h=kept.to(latent=other).href, t=text)
        for other, text in ((number - 1, "previous"), (number + 1, "next"))
        if 0 <= other < scene.card.d_sae
    )


def _texts(run: OpenRun | None, scene: Scene, number: int) -> Html:
    """The examples that can be read."""
    if scene.place.prompt:
        away = scene.place.to(prompt="", pos="", trail="", source="", head="")
        return html(
            '<p class="sub summary">Reading the prompt above · <a href="{h}">back to the examples'
            "</a></p>",
            h=away.href,
        )
    if run is None:
        text = (
            "No examples: what this run's latents fire on was not collected. Type a prompt above, "
            "or run"
        )
        return boxed("Text", html(
            '<p class="sub">{t}</p><pre><code>saelab features {p}</code></pre>',
            t=text, p=scene.card.path.as_posix(),
        ))  # fmt: skip
    found = _examples(run, number)
    if not found:
        return boxed("Text", html(
            '<p class="sub">It fired on none of the tokens that were read. Type a prompt above.</p>'
        ))  # fmt: skip
    rows = joined(_example(run, scene, i, example) for i, example in enumerate(found[:N_EXAMPLES]))
    more = EMPTY
    if len(found) > N_EXAMPLES:
        rest = joined(
            _example(run, scene, i, example) for i, example in enumerate(found) if i >= N_EXAMPLES
        )
        more = html(
            "<details{open}><summary>{n} more</summary>{rest}</details>",
            n=len(found) - N_EXAMPLES, rest=rest,
            open=html(" open") if _chosen(scene.place, found) >= N_EXAMPLES else EMPTY,
        )  # fmt: skip
    return html(
        '<section class="card examples"><header><h2><b>Examples</b> <span>click one to see its '
        "sources; the first time this loads the language model</span></h2></header>{rows}{more}"
        "</section>",
        rows=rows, more=more,
    )  # fmt: skip


def _examples(run: OpenRun, number: int) -> list[Example]:
    found = run.features[number].examples
    return [*found.get("top", []), *found.get("negative", [])]


def _chosen(place: Place, found: list[Example]) -> int:
    """Which example the address names; the first for anything else."""
    text = place.example
    number = int(text) if text.isdecimal() and len(text) < 6 else 0
    return number if number < len(found) else 0


def _example(run: OpenRun, scene: Scene, number: int, example: Example) -> Html:
    style = TextStyle(run.features[int(scene.place.latent or 0)].max, run.spaced, 12)
    there = scene.place.to(example=number, pos=example.position, trail="", source="", head="")
    on = bool(scene.place.pos) and scene.place.example == str(number)
    return html(
        '<div class="example{on}"><a class="value" href="{h}" aria-label="Example {n}">{v}</a>'
        '<span class="text" dir="auto">{text}</span><span class="source">doc {doc} · {at}</span>'
        "</div>",
        on=" current" if on else "", h=there.href, n=number + 1, v=activation(example.value),
        text=example_text(example, style, run.features.file), doc=count(example.document),
        at=count(example.position),
    )  # fmt: skip


def _answer(scene: Scene, run: OpenRun | None, number: int) -> Html:
    """What the live model says, once a text was chosen; a problem is said in its place."""
    place = scene.place
    if not place.prompt and (run is None or not place.pos):
        return EMPTY
    try:
        found = _study(scene, run, number)
    except UsageError as error:
        back = EMPTY
        if scene.trail:
            start = place.to(trail="", source="", head="").href
            back = html(' <a href="{h}">Back to latent {n}</a>', h=start, n=number)
        return html('<p class="notice" role="status">{e}{b}</p>', e=error, b=back)
    if isinstance(found, str):
        return html('<p class="notice" role="status">{t}</p>', t=found)
    outside = left_out_line(found.tokens, found.left_out)
    if found.inputs is not None:
        return joined([parts_of.inputs_card(scene, found), outside])
    parts = [cards.sources_card(scene, found), outside]
    if found.parts is not None:
        parts.append(
            html(
                '<div class="two">{parts}{score}</div>',
                parts=parts_of.parts_card(scene, found),
                score=parts_of.score_card(scene, found),
            )
        )
    else:
        parts.append(
            html(
                '<p class="sub">Click a token or a bar to see what that source holds, and why the '
                "head looks there.</p>"
            )
        )
    return joined(parts)


def _noted(scene: Scene) -> Html:
    """What was done to the prompt otherwise than typed, once the model has read it."""
    place = scene.place
    if not place.prompt:
        return EMPTY
    try:
        said = noted(live_run(scene.card), place.prompt, chat=bool(place.chat))
    except UsageError:
        return EMPTY
    return html('<p class="notice">{n}</p>', n=said) if said else EMPTY


def _study(scene: Scene, run: OpenRun | None, number: int) -> Study | str:
    place, runs = scene.place, list(scene.cards.values())
    if place.prompt:
        ids = prompt_ids(scene.card, place.prompt, chat=bool(place.chat))
    else:
        assert run is not None
        found = _examples(run, number)
        if not found:
            return "It has no examples; type a prompt above."
        line = run.features.file["corpus/tokens"][found[_chosen(place, found)].context]
        ids = tuple(int(token) for token in line if token >= 0)
    position = _whole(place.pos)
    if position is None:
        position = strongest(runs, ids, scene.card.name, number)
        if position is None:
            return f"Latent {number} does not fire on this prompt; type another."
    step = scene.trail[-1] if scene.trail else Step(scene.card.name, number, position)
    return study(runs, ids, step, _whole(place.source), _whole(place.head))


def _whole(text: str) -> int | None:
    """The number that the address says; None for anything else."""
    return int(text) if text.isdecimal() and len(text) < 7 else None

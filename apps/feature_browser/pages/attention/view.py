"""A latent of attention heads: which heads and source tokens make it fire, and why.

`?trail=` has the latents followed from the page's own, RUN:LATENT@POSITION separated by bars; the
text stays that of the page's own latent.
"""

import streamlit as st

from feature_browser.data.address import link
from feature_browser.data.catalogue import Catalogue, RunCard, latent_number
from feature_browser.data.reading import OpenRun, open_run
from feature_browser.draw.boxes import alone, boxed, message, no_such_latent
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import activation, count
from feature_browser.draw.tokens import TextStyle, example_text, left_out_line
from feature_browser.live.chat import noted, switch
from feature_browser.live.model import live_run
from feature_browser.pages import Page
from feature_browser.pages.attention import part_cards as parts_of
from feature_browser.pages.attention import source_cards as cards
from feature_browser.pages.attention.address import AttentionAddress
from feature_browser.pages.attention.scene import AttentionScene
from feature_browser.pages.attention.study import Study, prompt_ids, strongest, study
from feature_browser.pages.attention.trail import (
    TrailStep,
    chosen_runs,
    reads_heads,
    runs_before,
    trail_of,
)
from feature_browser.shell.canvas import STATIC, change, go_to, show
from saelab.analysis.records import Example
from saelab.config import UsageError
from saelab.sites import Site

GO_TO, PROMPT = "attention-latent", "attention-prompt"
UNPICKED = {"pos": "", "trail": "", "source": "", "head": ""}
"""The address of a text in which nothing is picked."""
N_EXAMPLES = 6


def attention_view(catalogue: Catalogue, card: RunCard, address: AttentionAddress) -> None:
    """Draw the page of the latent that `address` names."""
    st.html(STATIC / "page_circuit.css")
    if not reads_heads(card):
        show(alone(_no_heads(catalogue, card)), "attention")
        return
    run = open_run(card) if card.features_path.is_file() else None
    if address.latent is None:
        address = address.to(latent=run.telling_latent() if run else 0)
        go_to(address)
    number = latent_number(address.latent, card.d_sae)
    _controls(card, address)
    if number is None:
        gone = no_such_latent(address.latent, card.d_sae, address.to(latent=0).href)
        show(alone(gone), "attention")
        return
    before = runs_before(catalogue, card)
    chosen = [card, *chosen_runs(before, address)]
    runs = {one.name: one for one in chosen}
    scene = AttentionScene(card, runs, address, trail_of(address.trail, list(runs)))
    shares = run.features[number].head_weights if run else []
    aside = [
        _identity(scene, number),
        # Behind W_O a decoder row has no part for each head.
        cards.heads_card(shares, scene) if Site.of(card.site).kind == "heads" else EMPTY,
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
        html('<a href="{h}">{n}</a> ', h=link("attention", run=other.name), n=other.name)
        for other in others
    )
    after = html("<p>Runs that do: {links}</p>", links=links) if others else EMPTY
    return message(
        "This page is about attention heads",
        f"It needs a run whose SAE reads attention heads (blocks.N.attn.hook_z or "
        f"blocks.N.hook_attn_out); "
        f"{card.name} reads {card.site}.",
        command="saelab train topk --activations DIR --site blocks.N.attn.hook_z --out RUN",
        after=after,
    )


def _controls(card: RunCard, address: AttentionAddress) -> None:
    if st.session_state.get(PROMPT, "") != address.prompt:
        st.session_state[PROMPT] = address.prompt
    with st.container(key="controls", horizontal=True, vertical_alignment="center"):
        st.text_input(
            "Latent", key=GO_TO, placeholder=f"latent, 0 … {card.d_sae - 1}",
            on_change=_typed_latent, label_visibility="collapsed", width=170,
        )  # fmt: skip
        st.text_input(
            "Prompt", key=PROMPT, placeholder="Type a prompt to read it instead of an example",
            on_change=_typed_prompt, label_visibility="collapsed", width=560, max_chars=20_000,
        )  # fmt: skip
        switch(card, address.chat, _switched)


def _typed_latent() -> None:
    if wanted := st.session_state[GO_TO].strip():
        change(AttentionAddress, lambda now: _same_text(now).to(latent=wanted))
    st.session_state[GO_TO] = ""


def _typed_prompt() -> None:
    prompt = st.session_state[PROMPT]
    change(AttentionAddress, lambda now: now.to(prompt=prompt, **UNPICKED))


def _switched(chat: str) -> None:
    change(AttentionAddress, lambda now: now.to(chat=chat, **UNPICKED))


def _same_text(address: AttentionAddress) -> AttentionAddress:
    """The start of the Attention page for another latent of the same text."""
    return address.fresh(prompt=address.prompt, chat=address.chat, beside=address.beside)


def _identity(scene: AttentionScene, number: int) -> Html:
    title = scene.title(scene.card.name, number)
    page = link("latent", run=scene.card.name, latent=number)
    return html(
        '<section class="card"><h1 aria-live="polite">{n}</h1><p class="lead">{title}</p>'
        '<p class="leads"><a href="{page}">its page</a>{step}</p></section>',
        n=number, title=title, page=page, step=_neighbours(scene, number),
    )  # fmt: skip


def _neighbours(scene: AttentionScene, number: int) -> Html:
    kept = _same_text(scene.address)
    return joined(
        html('<a href="{h}">{t}</a>', h=kept.to(latent=other).href, t=text)
        for other, text in ((number - 1, "previous"), (number + 1, "next"))
        if 0 <= other < scene.card.d_sae
    )


def _texts(run: OpenRun | None, scene: AttentionScene, number: int) -> Html:
    """The examples that can be read."""
    if scene.address.prompt:
        away = scene.address.to(prompt="", pos="", trail="", source="", head="")
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
            open=html(" open") if _chosen(scene.address, found) >= N_EXAMPLES else EMPTY,
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


def _chosen(address: AttentionAddress, found: list[Example]) -> int:
    """The example that the address names; the first for an invalid value."""
    number = int(address.example)
    return number if number < len(found) else 0


def _example(run: OpenRun, scene: AttentionScene, number: int, example: Example) -> Html:
    style = TextStyle(run.features[int(scene.address.latent or 0)].max, run.spaced, 12)
    there = scene.address.to(example=number, pos=example.position, trail="", source="", head="")
    on = bool(scene.address.pos) and scene.address.example == str(number)
    why = scene.address.visit(
        "circuit", part="explain", example=f"{example.context}-{example.position}",
        wanted=f"{scene.card.own_name}:{scene.address.latent}",
    )  # fmt: skip
    return html(
        '<div class="example{on}"><a class="value" href="{h}" aria-label="Example {n}">{v}</a>'
        '<span class="text" dir="auto">{text}</span><span class="source">doc {doc} · {at} · '
        '<a href="{why}">explain</a></span></div>',
        on=" current" if on else "", h=there.href, n=number + 1, v=activation(example.value),
        text=example_text(example, style, run.features.file), doc=count(example.document),
        at=count(example.position), why=why,
    )  # fmt: skip


def _answer(scene: AttentionScene, run: OpenRun | None, number: int) -> Html:
    """The live model's results for the chosen text, or a problem in their place."""
    address = scene.address
    if not address.prompt and (run is None or not address.pos):
        return EMPTY
    try:
        found = _study(scene, run, number)
    except UsageError as error:
        back = EMPTY
        if scene.trail:
            start = address.to(trail="", source="", head="").href
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


def _noted(scene: AttentionScene) -> Html:
    """How the prompt differs from what was typed, once the model has read it."""
    address = scene.address
    if not address.prompt:
        return EMPTY
    try:
        said = noted(live_run(scene.card), address.prompt, chat=bool(address.chat))
    except UsageError:
        return EMPTY
    return html('<p class="notice">{n}</p>', n=said) if said else EMPTY


def _study(scene: AttentionScene, run: OpenRun | None, number: int) -> Study | str:
    address, runs = scene.address, list(scene.cards.values())
    if address.prompt:
        ids = prompt_ids(scene.card, address.prompt, chat=bool(address.chat))
    else:
        assert run is not None
        found = _examples(run, number)
        if not found:
            return "It has no examples; type a prompt above."
        line = run.features.file["corpus/tokens"][found[_chosen(address, found)].context]
        ids = tuple(int(token) for token in line if token >= 0)
    position = _whole(address.pos)
    if position is None:
        position = strongest(runs, ids, scene.card.name, number)
        if position is None:
            return f"Latent {number} does not fire on this prompt; type another."
    step = scene.trail[-1] if scene.trail else TrailStep(scene.card.name, number, position)
    return study(runs, ids, step, _whole(address.source), _whole(address.head))


def _whole(text: str) -> int | None:
    """The number in the address, if it is one."""
    return int(text) if text else None


PAGE = Page("Attention", AttentionAddress, attention_view, asks="Which heads make it fire?")

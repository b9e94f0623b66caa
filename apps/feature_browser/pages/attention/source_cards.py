"""The cards of the Attention page: the latent's heads, the other SAEs, and its sources."""

import numpy as np

from feature_browser.data.catalogue import RunCard
from feature_browser.draw.boxes import bar, boxed
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import activation, count, percent, real, signed
from feature_browser.pages.attention.scene import AttentionScene, breadcrumb
from feature_browser.pages.attention.source_pictures import heat_strip, source_text, word
from feature_browser.pages.attention.study import Study
from feature_browser.pages.attention.trail import NOBODY, beside_text, chosen_runs

N_CELLS, N_FIRES = 6, 12


def heads_card(shares: list[float], scene: AttentionScene) -> Html:
    """Which heads the latent's decoder row writes to."""
    if not shares:
        ask = f"saelab features {scene.card.path.as_posix()}"
        return boxed(
            "Heads, by its weights",
            html(
                '<p class="sub">Not collected. Run</p><pre><code>{c}</code></pre>', c=ask
            ),
        )  # fmt: skip
    rows = joined(
        html(
            "<dl><dt>head {head}</dt><dd>{share}</dd></dl>{bar}",
            head=head, share=percent(share), bar=bar(share),
        )
        for head, share in enumerate(shares)
    )  # fmt: skip
    note = html(
        '<p class="sub">Share of its decoder row, by norms: where it writes. It may read from '
        "other heads: see a text.</p>"
    )
    return boxed("Heads, by its weights", joined([rows, note]))


def beside_card(scene: AttentionScene, found: dict[int, list[RunCard]]) -> Html:
    """Which other SAEs take the source tokens apart, and those that could instead."""
    title = "Sources are taken apart by"
    if not found:
        text = html(
            '<p class="sub">No other SAE: below {root} no run of {model} reads an earlier place. '
            "Train one on the residual stream before this block, or on earlier heads, and its "
            "latents are named here.</p>",
            root=scene.card.path.parent.as_posix(), model=scene.card.model,
        )  # fmt: skip
        return boxed(title, text)
    chosen = {run.name for run in chosen_runs(found, scene.address)}
    rows = [
        _beside(scene, found, run, on=run.name in chosen)
        for cards in found.values()
        for run in cards
    ]
    off = html(
        '<li><a href="{h}"{on}>none</a> <span class="sub">whole heads, MLPs and embeddings</span>'
        "</li>",
        h=scene.address.to(beside=NOBODY, trail="", source="", head="").href,
        on=html(' aria-current="true"') if not chosen else EMPTY,
    )
    return boxed(title, html('<ul class="pins">{r}{o}</ul>', r=joined(rows), o=off))


def _beside(
    scene: AttentionScene, found: dict[int, list[RunCard]], run: RunCard, *, on: bool
) -> Html:
    there = scene.address.to(
        beside=beside_text(found, scene.address, run), trail="", source="", head=""
    )
    return html(
        '<li>{mark}<a href="{href}"{on}>{name}</a> <span class="sub">{site}</span></li>',
        mark="✓ " if on else "", href=there.href, name=run.name, site=run.site,
        on=html(' aria-current="true"') if on else EMPTY,
    )  # fmt: skip


def sources_card(scene: AttentionScene, study: Study) -> Html:
    """The value as a sum over heads and sources."""
    assert study.sources is not None
    table_ = study.sources.table
    by_head = table_.sum(0)
    best = int(np.abs(by_head).argmax())
    sentence = (
        f"{real(study.value)} = {signed(float(table_.sum()))} from heads and "
        f"{signed(study.sources.constant)} constant. Head {study.sources.layer}.{best} gives "
        f"{signed(float(by_head[best]))}."
    )
    return html(
        '<section class="card">{crumbs}<h2>Which source tokens, through which heads?'
        '<span class="hint">exact: all parts sum to the activation</span></h2>'
        '<p>{sentence}</p>{text}{strip}<div class="numbers largest">{largest}</div>{fires}'
        "</section>",
        crumbs=breadcrumb(scene, study), sentence=sentence,
        text=source_text(study, scene.address), strip=heat_strip(study, scene.address),
        largest=_largest(scene, study), fires=fires_line(scene, study),
    )  # fmt: skip


def _largest(scene: AttentionScene, study: Study) -> Html:
    assert study.sources is not None
    table_ = study.sources.table
    order = np.argsort(-np.abs(table_), axis=None)[:N_CELLS]
    cells = [divmod(int(i), table_.shape[1]) for i in order]
    return joined(
        html(
            '<a href="{href}">head {layer}.{head} from <code>{token}</code> @{s}</a> '
            '<span class="{sign}-text">{v}</span>',
            href=scene.address.to(source=source, head=head).href, layer=study.sources.layer,
            head=head, token=word(study.tokens[source]), s=source,
            sign="neg" if table_[source, head] < 0 else "pos",
            v=signed(float(table_[source, head])),
        )
        for source, head in cells
        if table_[source, head]
    )  # fmt: skip


def fires_line(scene: AttentionScene, study: Study) -> Html:
    """The other tokens of the text where the latent fires."""
    others = [(p, v) for p, v in study.fires if p != study.step.position]
    if scene.trail or not others:
        return EMPTY
    shown = sorted(sorted(others, key=lambda pair: -abs(pair[1]))[:N_FIRES])
    links = joined(
        html(
            ' <a href="{h}"><code>{t}</code>@{p}</a> {v}',
            h=scene.address.to(pos=p, source="", head="").href, t=word(study.tokens[p]), p=p,
            v=activation(v),
        )
        for p, v in shown
    )  # fmt: skip
    return html(
        '<p class="sub">It fires at {n} more tokens of this text:{links}</p>',
        n=count(len(others)), links=links,
    )  # fmt: skip

"""The parts of a latent's value at one place, and why a head attends there."""

from feature_browser.draw.boxes import boxed
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import activation, count, flow_text, percent, real, signed
from feature_browser.draw.tables import Column, anchor, cell, table
from feature_browser.pages.attention.scene import AttentionScene, breadcrumb
from feature_browser.pages.attention.source_pictures import word
from feature_browser.pages.attention.study import Parts, Score, Study
from feature_browser.pages.attention.trail import TrailStep
from saelab.analysis.circuits.nodes import Node


def parts_card(scene: AttentionScene, study: Study) -> Html:
    """The components of the residual stream at the picked source that give the latent its value."""
    assert study.parts is not None
    assert study.sources is not None
    source = int(scene.address.source)
    given = float(study.sources.table[source].sum())
    title = f"What “{word(study.tokens[source])}” @{source} holds that does it"
    return boxed(title, amounts(scene, study, study.parts), hint=f"sums to {signed(given)}")


def inputs_card(scene: AttentionScene, study: Study) -> Html:
    """The inputs that give a latent of the stream or of an MLP its value."""
    assert study.inputs is not None
    return html(
        '<section class="card">{crumbs}<h2>What gives it its value directly?<span class="hint">'
        "attention and norms held fixed · all parts sum to {value}</span></h2>{rows}</section>",
        crumbs=breadcrumb(scene, study), value=real(study.value),
        rows=amounts(scene, study, study.inputs),
    )  # fmt: skip


def amounts(scene: AttentionScene, study: Study, parts: Parts) -> Html:
    """Nodes with their contributions; latents can be followed."""
    largest = max((abs(amount) for _, amount in parts.rows), default=1.0) or 1.0
    rows = joined(_amount(scene, study, node, amount, largest) for node, amount in parts.rows)
    rest = EMPTY
    if parts.n_others:
        rest = html(
            '<p class="sub">{n} others together {v}</p>',
            n=count(parts.n_others), v=signed(parts.others),
        )  # fmt: skip
    return joined([rows, rest])


def _amount(scene: AttentionScene, study: Study, node: Node, amount: float, largest: float) -> Html:
    token = "" if node.position is None else f"{word(study.tokens[node.position])}"
    body = html(
        '<span>{what} <em>{token}</em></span><i style="width:{w}%"></i><b>{v}</b>',
        what=scene.what(node), token=token, w=f"{100 * abs(amount) / largest:.1f}",
        v=flow_text(amount),
    )  # fmt: skip
    sign = "neg" if amount < 0 else "pos"
    tip = _tip(scene, study, node)
    if node.kind != "latent" or node.latent is None or node.position is None:
        return html('<div class="amount {s}" data-tip="{t}">{b}</div>', s=sign, t=tip, b=body)
    href = scene.follow(TrailStep(node.name, node.latent, node.position))
    return html(
        '<a class="amount {s}" href="{h}" data-tip="{t}">{b}</a>', s=sign, h=href, t=tip, b=body
    )


def _tip(scene: AttentionScene, study: Study, node: Node) -> str:
    if node.kind == "latent" and node.latent is not None and node.position is not None:
        token = word(study.tokens[node.position])
        title = scene.title(node.name, node.latent)
        name = f"{node.name} {node.latent}" + (f"\n{title}" if title else "")
        return f"{name}\nactivation {activation(node.value)} at {token} · click to look into it"
    if node.kind == "error" and node.position in study.left_out.get(node.name, ()):
        return "all of it: this SAE is not applied there, its training left such tokens out"
    kinds = {
        "error": "what this SAE misses there",
        "embedding": "the token itself",
        "position": "where it stands",
        "mlp": "an MLP's output as it is: no SAE reads it",
        "heads": "a head's output as it is: no SAE reads it",
        "bias": "a constant",
    }
    return kinds.get(node.kind, node.kind)


def score_card(scene: AttentionScene, study: Study) -> Html:
    """The query and key components that make the head attend there."""
    assert study.score is not None
    score, source = study.score, int(scene.address.source)
    here = word(study.tokens[study.step.position])
    title = (
        f"Why head {score.layer}.{score.head} looks from “{here}” to “{word(study.tokens[source])}”"
    )
    columns = [
        Column(f"Query, at “{here}”"),
        Column(f"Key, at “{word(study.tokens[source])}”"),
        Column("Part", "of the score before the softmax", numeric=True),
    ]
    rows = [
        [_component(scene, query), _component(scene, key), _part(value)]
        for query, key, value in score.pairs
    ]
    heads = _head_choice(scene, study, score)
    return boxed(
        title,
        html(
            "{heads}<p>Attention {a}; score {s}, the sum of {n} pairs.</p>{table}"
            '<p class="sub">Only differences between the scores of two sources move attention.</p>',
            heads=heads, a=percent(score.attention), s=real(score.score), n=count(score.n_pairs),
            table=table(columns, rows, "Pairs of query and key"),
        ),
    )  # fmt: skip


def _component(scene: AttentionScene, node: Node) -> Html:
    what = scene.what(node)
    if node.kind != "latent" or node.latent is None or node.position is None:
        return cell(what)
    return anchor(scene.follow(TrailStep(node.name, node.latent, node.position)), what)


def _part(value: float) -> Html:
    sign = "neg" if value < 0 else "pos"
    return html('<span class="{s}-text">{v}</span>', s=sign, v=cell(flow_text(value)))


def _head_choice(scene: AttentionScene, study: Study, score: Score) -> Html:
    n = study.sources.table.shape[1] if study.sources else 0
    links = joined(
        html(
            '<a href="{h}"{on}>{layer}.{head}</a>',
            h=scene.address.to(head=head).href, layer=score.layer, head=head,
            on=html(' aria-current="true"') if head == score.head else EMPTY,
        )
        for head in range(n)
    )  # fmt: skip
    return html('<div class="choice heads"><span>head</span>{links}</div>', links=links)

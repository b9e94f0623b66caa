"""The cards beside and below a graph: target, picked node, pins, all nodes."""

import math

from feature_browser.draw.boxes import boxed, pairs
from feature_browser.draw.markup import EMPTY, Html, html, joined, running
from feature_browser.draw.names import named
from feature_browser.draw.numbers import UNKNOWN, activation, count, flow_text, percent, real
from feature_browser.draw.tables import Column, anchor, cell, part, table
from feature_browser.draw.tokens import left_out_line
from feature_browser.pages.circuit.graphs import OpenGraph, pins_text
from feature_browser.pages.circuit.layout import has_room, share_with_names
from feature_browser.pages.circuit.picture import hidden_text
from feature_browser.pages.circuit.scene import GraphScene
from saelab.analysis.circuits.nodes import Node
from saelab.console import visible

AT_FIRST = 15


def number_in(facts: object, *path: str) -> float | None:
    """A finite number at the end of `path` in nested JSON; None if there is none."""
    for name in path:
        facts = facts.get(name) if isinstance(facts, dict) else None
    whole = isinstance(facts, int | float) and not isinstance(facts, bool) and math.isfinite(facts)
    return float(facts) if whole else None


def headline(scene: GraphScene) -> Html:
    """The target, the SAEs that explain it, and how reliable the graph is."""
    facts, found = scene.found.graph.facts, scene.found
    probability = number_in(facts, "probability")
    value = f"{real(found.graph.nodes[-1].value)}"
    sure = "" if probability is None else f", probability {real(probability, 3)}"
    tokens = joined(
        html(
            '<span class="word{on}">{t}</span> ',
            t=running(visible(token).strip() or "␣"),
            on=" at" if position == found.graph.nodes[-1].position else "",
        )
        for position, token in enumerate(found.graph.tokens)
    )
    return html(
        '<h1 class="headline">{target} = {value}</h1><p class="text prompt" dir="auto">{tokens}</p>'
        '<p class="sub">Exact with attention patterns and norms held fixed{sure}. {trust}</p>{out}',
        target=facts.get("target", "the target"), value=value, tokens=tokens, sure=sure,
        trust=_trust(facts), out=left_out_line(found.graph.tokens, found.graph.not_applied),
    )  # fmt: skip


def _trust(facts: dict[str, object]) -> str:
    parts = []
    errors, mlps = (number_in(facts, "scores", n) for n in ("error_influence", "mlp_influence"))
    if errors is not None and mlps is not None:
        parts.append(
            f"Of what its leaves give, {percent(errors)} comes from SAE errors and "
            f"{percent(mlps)} from MLPs without an SAE."
        )
    kept, lost = ratio_in(facts, "faithfulness"), ratio_in(facts, "completeness")
    n = number_in(facts, "faithfulness", "n_members")
    if kept is not None and lost is not None and n is not None:
        parts.append(
            f"In the live model, the {count(int(n))} latents that the command kept have "
            f"faithfulness {real(kept)} (1 is perfect) and completeness {real(lost)} (0 is "
            f"perfect).{_beside_chance(facts)}"
        )
    if caveat := _caveat(facts):
        parts.append(caveat)
    return " ".join(parts) or "It was not judged in the live model."


def _beside_chance(facts: dict[str, object]) -> str:
    kept = number_in(facts, "faithfulness", "by_chance", "faithfulness")
    lost = number_in(facts, "faithfulness", "by_chance", "completeness")
    if kept is None or lost is None:
        return ""
    return f" As many by chance: {real(kept)} and {real(lost)}."


def ratio_in(facts: dict[str, object], name: str) -> float | None:
    """The faithfulness or completeness; None beside a caveat, where older versions saved noise."""
    return None if _caveat(facts) else number_in(facts, "faithfulness", name)


def _caveat(facts: dict[str, object]) -> str:
    judged = facts.get("faithfulness")
    caveat = judged.get("caveat") if isinstance(judged, dict) else None
    return caveat if isinstance(caveat, str) else ""


def filter_line(scene: GraphScene) -> Html:
    """What is hidden, and how to show it."""
    undo = EMPTY
    if scene.kept.hidden_nodes or scene.kept.hidden_edges:
        everything = scene.address.to(nodes=100, edges=100)
        undo = html(' · <a href="{h}">show all</a>', h=everything.href)
    return html(
        '<p class="sub summary">{shown}{undo}{fewer}</p>',
        shown=shown_text(scene), undo=undo, fewer=_with_names(scene),
    )  # fmt: skip


def shown_text(scene: GraphScene) -> str:
    """How many nodes are shown, and what is hidden."""
    shown, known = int(scene.kept.nodes.sum()), len(scene.kept.nodes)
    return f"{count(shown)} of {count(known)} nodes · {hidden_text(scene.found, scene.kept)}"


def _with_names(scene: GraphScene) -> Html:
    """A link to fewer nodes, where there are too many for names."""
    address = scene.address
    share = share_with_names(scene.found, int(address.nodes), int(address.edges))
    named = has_room(int(scene.kept.nodes.sum()))
    if address.named == "no" or named or share == int(address.nodes):
        return EMPTY
    return html(
        ' · too many for names: <a href="{h}">show {n} % of the influence</a>',
        h=address.to(nodes=share).href, n=share,
    )  # fmt: skip


def node_card(scene: GraphScene) -> Html:
    """The picked node: its kind, its inputs, its outputs."""
    number = scene.picked
    if number is None:
        gone = html('<p class="notice">The graph has no node {name}.</p>', name=scene.address.node)
        body = html(
            "{gone}<p>Click a node to see what it is, what gives it its value and what it "
            'gives.</p><p class="sub">Size is influence: the share of paths to the target that '
            "lead through a node. The width of an edge is the share of paths that take it.</p>",
            gone=gone if scene.address.node else EMPTY,
        )
        return boxed("Node", body)
    found, node = scene.found, scene.found.graph.nodes[number]
    title = scene.names.title(node)
    rows = []
    if node.position is not None:
        rows.append(("token", f"{word_of(found, node)} (position {node.position})"))
    rows.append(("block", str(node.layer) if node.layer >= 0 else "before the first"))
    if node.kind in ("latent", "target"):
        name = "activation" if node.kind == "latent" else "value"
        rows.append((name, activation(node.value)))
    rows += [
        ("gives the target", flow_text(float(found.given[number]))),
        ("influence", percent(float(found.influence[number]))),
    ]
    body = html(
        '<p class="lead" role="status">{what}</p><p class="sub">{kind}</p>{facts}{actions}'
        "{into}{out}",
        what=title or scene.names.what(node), kind=_kind_words(scene, number), facts=pairs(rows),
        actions=_actions(scene, number), into=_edges(scene, number, into=True),
        out=_edges(scene, number, into=False),
    )  # fmt: skip
    return boxed("Node", body)


def _kind_words(scene: GraphScene, number: int) -> str:
    node = scene.found.graph.nodes[number]
    reads = {"residual": "the residual stream", "heads": "attention heads", "mlp": "an MLP"}
    reads["attention"] = "attention's output"
    own = reads.get(scene.found.reads(node), "the model")
    words = {
        "latent": f"latent {node.latent} of {node.name}, which reads {own}",
        "error": f"what {node.name} misses of {own}; no latent accounts for it",
        "embedding": "the token's embedding",
        "position": "the position's embedding",
        "mlp": "an MLP's output as it is, without an SAE",
        "heads": "a head's output as it is, without an SAE",
        "bias": "a constant, over all positions",
        "rest": "all active latents that the graph left out, together",
        "target": "what the graph explains",
    }
    if node.kind == "error" and scene.found.graph.left_out(node):
        return f"all of {own}: {node.name} is not applied here, its training left such tokens out"
    return words[node.kind]


def _actions(scene: GraphScene, number: int) -> Html:
    found, address, pins = scene.found, scene.address, scene.pins
    node = found.graph.nodes[number]
    pinned = number in pins
    others = [pin for pin in pins if pin != number]
    changed = others if pinned else [*pins, number]
    parts = [anchor(address.to(pins=pins_text(found, changed)).href, "unpin" if pinned else "pin")]
    if href := scene.names.href(node):
        parts.append(anchor(href, "its page"))
    if there := attention_link(scene, number):
        parts.append(anchor(there, "its heads and sources"))
    return html('<p class="leads">{parts}</p>', parts=joined(parts))


def attention_link(scene: GraphScene, number: int) -> str:
    """The link to the Attention page of an attention latent; empty for other nodes."""
    node, prompt = scene.found.graph.nodes[number], scene.found.graph.facts.get("prompt")
    if scene.found.reads(node) not in ("heads", "attention"):
        return ""
    text = {"prompt": prompt, "pos": node.position} if isinstance(prompt, str) else {}
    return scene.names.href(node, "attention", **text)


def _edges(scene: GraphScene, number: int, *, into: bool) -> Html:
    found = scene.found
    edges = found.into(number) if into else found.out_of(number)
    title = "what gives it its value" if into else "where it goes"
    if not edges:
        if into:
            return html('<h3>{t}</h3><p class="sub">A leaf: nothing in the graph.</p>', t=title)
        return EMPTY
    everything = found.graph.target == number if into else found.graph.source == number
    ends = found.graph.source if into else found.graph.target
    amounts = found.graph.weight if into else found.flow
    largest = max(abs(float(amounts[edge])) for edge in edges) or 1.0
    rows = joined(
        _edge_row(scene, int(ends[edge]), float(amounts[edge]), largest) for edge in edges
    )
    unit = "in its own units" if into else "in the target's units"
    return html(
        '<h3 class="edges-title">{title} <span>{n} of {all}, {unit}</span></h3>{rows}',
        title=title, n=len(edges), all=count(int(everything.sum())), unit=unit, rows=rows,
    )  # fmt: skip


def _edge_row(scene: GraphScene, other: int, amount: float, largest: float) -> Html:
    found, node = scene.found, scene.found.graph.nodes[other]
    label = scene.names.title(node) or scene.names.what(node)
    return html(
        '<a class="amount {sign}" href="{href}" data-tip="{tip}"><span>{label} <em>{token}</em>'
        '</span><i style="width:{w}%"></i><b>{amount}</b></a>',
        sign="neg" if amount < 0 else "pos", href=scene.address.to(node=found.ids[other]).href,
        tip=scene.names.tip(other), label=label, token=word_of(found, node),
        w=f"{100 * abs(amount) / largest:.1f}", amount=flow_text(amount),
    )  # fmt: skip


def word_of(found: OpenGraph, node: Node) -> str:
    """The token at a node's position, as shown; empty for nodes without a position."""
    return "" if node.position is None else visible(found.token(node)).strip() or "␣"


def node_table(scene: GraphScene) -> Html:
    """Every shown node by contribution: the picture as a table, for those who cannot see it."""
    found = scene.found
    numbers = scene.kept.nodes.nonzero()[0].tolist()
    numbers.sort(key=lambda n: -abs(float(found.given[n])) if n != found.target else -math.inf)
    columns = [
        Column("Node"), Column("Token"), Column("Called"),
        Column("Activation", "its value on the prompt", numeric=True),
        Column("Gives the target", "over all paths, in the target's units", numeric=True),
        Column("Influence", "share of the paths to the target that lead through it", numeric=True),
    ]  # fmt: skip
    rows = [_node_row(scene, number) for number in numbers]
    first = table(columns, rows[:AT_FIRST], "Nodes by what they give")
    if len(rows) <= AT_FIRST:
        return first
    rest = table(columns, rows[AT_FIRST:], "The other nodes that are shown")
    more = html(
        "<details><summary>{n} more</summary>{rest}</details>", n=len(rows) - AT_FIRST, rest=rest
    )
    return joined([first, more])


def _node_row(scene: GraphScene, number: int) -> list[Html]:
    found, node = scene.found, scene.found.graph.nodes[number]
    at = node.position
    where = EMPTY if at is None else part(at, "position", f"@{at}")
    return [
        anchor(scene.address.to(node=found.ids[number]).href, scene.names.what(node)),
        html("<code>{t}</code> {at}", t=word_of(found, node), at=where)
        if node.position is not None
        else cell("all"),
        named(scene.names.called(node)) if node.kind == "latent" else EMPTY,
        cell(activation(node.value) if node.kind in ("latent", "target") else UNKNOWN),
        cell(flow_text(float(found.given[number]))),
        cell(percent(float(found.influence[number]))),
    ]

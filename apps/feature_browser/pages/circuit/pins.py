"""Pinned nodes, the supernodes they were grouped into, and the flow between these."""

import numpy as np

from feature_browser.draw.boxes import boxed
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count, flow_text
from feature_browser.draw.tables import Column, anchor, cell, table
from feature_browser.pages.circuit.graphs import OpenGraph, pins_text
from feature_browser.pages.circuit.node_cards import word_of
from feature_browser.pages.circuit.scene import GraphScene
from feature_browser.pages.circuit.supernodes import nodes_text, supernode_picture

MOST_FLOWS = 40
REST = "everything else"


def pins_card(scene: GraphScene) -> Html:
    """The pinned nodes, and the saved groups."""
    found, address = scene.found, scene.address
    lost = EMPTY
    if scene.lost:
        lost = html(
            '<p class="notice">{n} pinned {nodes} in this graph.</p>',
            n=count(scene.lost), nodes="node is not" if scene.lost == 1 else "nodes are not",
        )  # fmt: skip
    if scene.pins:
        rows = joined(_pin(scene, pin) for pin in scene.pins)
        away = anchor(address.to(pins="").href, "unpin all")
        pins = html('<ul class="pins">{rows}</ul><p class="leads">{away}</p>', rows=rows, away=away)
    else:
        pins = html(
            '<p class="sub">None. Pin nodes to keep them in sight, to name them together as a '
            "supernode, or to change them in the live model.</p>"
        )
    if len(scene.pins) > 1:
        pins = html(
            '{pins}<p class="sub">Together they give the target {sum} in the graph.</p>',
            pins=pins,
            sum=flow_text(found.together(scene.pins)),
        )
    return boxed("Pinned", joined([lost, pins, _groups(scene)]))


def _pin(scene: GraphScene, pin: int) -> Html:
    node, address, found = scene.found.graph.nodes[pin], scene.address, scene.found
    left = [other for other in scene.pins if other != pin]
    return html(
        '<li><a href="{href}">{what}</a> <code>{token}</code> <span class="sub">{title}</span>'
        '<a class="away" href="{away}" aria-label="Unpin {what}">unpin</a></li>',
        href=address.to(node=found.ids[pin]).href, what=scene.names.what(node),
        token=word_of(found, node) or "all tokens", title=scene.names.title(node),
        away=address.to(pins=pins_text(found, left)).href,
    )  # fmt: skip


def _groups(scene: GraphScene) -> Html:
    if not scene.groups:
        return EMPTY
    rows = joined(
        html(
            '<li><a href="{href}"{on}>{label}</a> <span class="sub">{n}{lost}</span></li>',
            href=scene.address.to(pins=pins_text(scene.found, members)).href,
            on=html(' aria-current="true"') if members == scene.pins else EMPTY,
            label=label, n=nodes_text(len(members)),
            lost=f", {count(lost)} not in this graph" if lost else "",
        )
        for label, (members, lost) in members_of(scene.found, scene.groups or {}).items()
    )  # fmt: skip
    return html(
        '<h3 class="groups">Supernodes <span>click one to pin its nodes; drawn below</span></h3>'
        '<ul class="pins">{rows}</ul>',
        rows=rows,
    )


def members_of(found: OpenGraph, groups: dict[str, list[str]]) -> dict[str, tuple[list[int], int]]:
    """The nodes of each group by label, and the number of its nodes that are not in the graph."""
    numbers = found.numbers
    return {
        label: (
            [numbers[name] for name in names if name in numbers],
            sum(name not in numbers for name in names),
        )
        for label, names in groups.items()
    }


def flows(scene: GraphScene) -> Html:
    """The direct flow between supernodes; empty if there are none."""
    groups = {
        label: members
        for label, (members, _) in members_of(scene.found, scene.groups or {}).items()
        if members
    }
    if not groups:
        return EMPTY
    found = flow_table(scene.found, groups)
    labels = [*groups, REST, "target"]
    columns = [
        Column("From"), Column("To"),
        Column("Directly", "what of the target's value passes, in its units", numeric=True),
    ]  # fmt: skip
    pairs = [
        (i, j)
        for i in range(len(labels))
        for j in range(len(labels))
        if i != j and labels[i] != "target" and found[i, j]
    ]
    pairs = [(i, j) for i, j in pairs if {labels[i], labels[j]} != {REST, "target"}]
    pairs.sort(key=lambda pair: -abs(found[pair]))
    rows = [[cell(labels[i]), cell(labels[j]), _amount(found[i, j])] for i, j in pairs[:MOST_FLOWS]]
    hint = "tokens from left to right · a node of several groups counts in the first"
    body = [supernode_picture(scene.found, groups, found), table(columns, rows, "Supernodes")]
    return boxed("What the supernodes give each other", joined(body), hint=hint)


def _amount(value: float) -> Html:
    return html(
        '<span class="{sign}-text">{v}</span>',
        sign="neg" if value < 0 else "pos",
        v=cell(flow_text(float(value))),
    )


def flow_table(found: OpenGraph, groups: dict[str, list[int]]) -> np.ndarray:
    """The target's value that passes between groups; then all other nodes, the target."""
    owner = np.full(len(found.ids), len(groups))
    for number, members in reversed(list(enumerate(groups.values()))):
        owner[members] = number
    owner[found.target] = len(groups) + 1
    table = np.zeros((len(groups) + 2,) * 2)
    np.add.at(table, (owner[found.graph.source], owner[found.graph.target]), found.flow)
    return table

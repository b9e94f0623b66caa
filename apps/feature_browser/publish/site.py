"""The files of a published run: its list of latents, a file for each, its circuits and figures."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from feature_browser.data.catalogue import Catalogue, RunCard, read_card
from feature_browser.data.labels import LatentNames
from feature_browser.data.reading import OpenRun, open_run
from feature_browser.draw.boxes import alone
from feature_browser.draw.markup import EMPTY, Html, escaped, html, joined
from feature_browser.draw.numbers import activation, count, percent, real, share_of_whole
from feature_browser.draw.tables import Column, anchor, cell, raised, table
from feature_browser.pages.circuit.address import CircuitAddress
from feature_browser.pages.circuit.graphs import OpenGraph, circuits_of, open_graph, sae_run
from feature_browser.pages.circuit.layout import share_with_names
from feature_browser.pages.circuit.node_cards import headline, node_table, shown_text
from feature_browser.pages.circuit.node_names import NodeNames
from feature_browser.pages.circuit.picture import picture
from feature_browser.pages.circuit.scene import GraphScene
from feature_browser.pages.health.measured import measured
from feature_browser.pages.latent.address import LatentAddress
from feature_browser.pages.latent.cards import LatentScene
from feature_browser.pages.latent.view import page
from feature_browser.publish.document import Links, document
from feature_browser.publish.still import still
from saelab.analysis.hub.card import anonymous
from saelab.config import UsageError

LATENTS, FIGURES = "index.html", "figures.html"
File = tuple[str, Callable[[], bytes]]
"""A file's name in the run's folder, and what makes it."""


@dataclass(frozen=True)
class PublishedRun:
    """A run, and what of it is published.

    Attributes:
        folder: of its files, beside those of the other runs.
        latents: the published ones, in the order of the list.
        others: the published runs by their names, this one included.
        comments: what is said of latents beside their names.
    """

    catalogue: Catalogue
    card: RunCard
    folder: str
    latents: Sequence[int]
    others: "Mapping[str, PublishedRun]"
    comments: Mapping[int, str]

    @cached_property
    def opened(self) -> OpenRun:
        """The run with its features."""
        return open_run(self.card)

    @cached_property
    def names(self) -> LatentNames:
        """What its latents are called."""
        return LatentNames.of(self.card)

    @cached_property
    def places(self) -> dict[int, int]:
        """Each published latent's place in the list."""
        return {latent: place for place, latent in enumerate(self.latents)}

    @cached_property
    def circuits(self) -> dict[str, str]:
        """The file of each graph, by the graph's name."""
        names = [path.stem for path in circuits_of(self.card)]
        return {name: f"circuit-{i + 1}-{slug(name)[:80]}.html" for i, name in enumerate(names)}

    def files(self) -> Iterator[File]:
        """Every file of the run; each is made when it is asked for."""
        yield LATENTS, self._list
        yield FIGURES, self._figures
        for name, file in self.circuits.items():
            yield file, lambda name=name, file=file: self._circuit(name, file)
        for latent in self.latents:
            yield f"{latent}.html", lambda latent=latent: self._latent(latent)

    @property
    def _bar(self) -> Links:
        circuits = [(self._titled(name), file) for name, file in self.circuits.items()]
        runs = [("All runs", "../index.html")]
        return [*runs, ("Latents", LATENTS), ("Figures", FIGURES), *circuits[:4]]

    def _titled(self, name: str) -> str:
        number = list(self.circuits).index(name) + 1
        return "Circuit" if len(self.circuits) == 1 else f"Circuit {number}"

    def _document(self, title: str, body: Html, here: str) -> bytes:
        # Of the places on this machine, which pages name, only the run's name is published.
        place = escaped(self.card.path.as_posix())
        shown = Html(body.replace(place, escaped(self.card.own_name)))
        return document(title, shown, links=self._bar, here=here)

    def file_of(self, params: Mapping[str, str]) -> str:
        """The file of a page of the app, seen from this run's folder; empty if there is none."""
        run = self.others.get(params.get("run", ""))
        if run is None:
            return ""
        way = "" if run is self else f"../{run.folder}/"
        file = ""
        if params["view"] == "latent" and params.get("latent", "").isdecimal():
            latent = int(params["latent"])
            file = f"{latent}.html" if latent in run.places else ""
        elif params["view"] == "circuit" and not params.get("node"):
            file = run.circuits.get(params.get("graph", ""), "")
        return f"{way}{file}" if file else ""

    def _latent(self, latent: int) -> bytes:
        scene = LatentScene(
            self.opened,
            self.opened.features[latent],
            LatentAddress(run=self.card.name, latent=str(latent)),
        )
        shown = still(page(scene), self.file_of)
        body = joined([self._turns(latent), self._comment(latent), shown])
        name = self.names.name(latent)
        return self._document(f"{latent} · {name}" if name else str(latent), body, "")

    def _turns(self, latent: int) -> Html:
        place = self.places[latent]
        around = {"prev": place - 1, "next": place + 1}
        keys = {"prev": ("Previous", "K"), "next": ("Next", "J")}
        links = [
            html(
                '<a rel="{rel}" href="{n}.html">{word} <kbd>{key}</kbd></a>',
                rel=Html(rel), n=self.latents[there], word=word, key=key,
            )
            if 0 <= there < len(self.latents)
            else html('<span aria-disabled="true">{word}</span>', word=word)
            for rel, there in around.items()
            for word, key in [keys[rel]]
        ]  # fmt: skip
        up = html('<a rel="up" href="{f}">all latents <kbd>I</kbd></a>', f=Html(LATENTS))
        return html(
            '<nav class="turns" aria-label="Latents">{links}{up}<span class="sub">{n} of {all}'
            "</span></nav>",
            links=joined(links), up=up, n=count(place + 1), all=count(len(self.latents)),
        )  # fmt: skip

    def _list(self) -> bytes:
        columns = [
            Column("Latent"), Column("Called"), Column("Density", numeric=True),
            Column("Max", numeric=True), Column("Raises", "the tokens whose logits it raises most"),
        ]  # fmt: skip
        values = self.opened.columns
        rows = (
            [
                anchor(f"{latent}.html", latent),
                html(
                    "{star}{name}{comment}",
                    star=self._star(latent),
                    name=self.names.name(latent),
                    comment=self._comment(latent),
                ),
                cell(percent(float(values["density"][self.opened.features.place(latent)]))),
                cell(activation(float(values["max"][self.opened.features.place(latent)]))),
                raised(self.opened, latent),
            ]
            for latent in self.latents
        )
        left = self.card.d_sae - len(self.latents)
        body = html(
            '<h1 class="headline">{run}</h1>{about}<input class="search" type="search" '
            'placeholder="Search: number, name, token  ( / )" aria-label="Search latents" '
            'autocomplete="off"><p class="sub"><span class="count" role="status">{n}</span>'
            '{left}</p><div class="listed">{table}</div>',
            run=self.card.name, about=self._about(), n=_latents(len(self.latents)),
            left=f" · {count(left)} more of this run are not published" if left else "",
            table=table(columns, rows, "Latents"),
        )  # fmt: skip
        return self._document(self.card.name, alone(body), LATENTS)

    def _comment(self, latent: int) -> Html:
        said = self.comments.get(latent, "")
        return html('<p class="sub comment">{said}</p>', said=said) if said else EMPTY

    def _star(self, latent: int) -> Html:
        starred = self.names.labels.of(latent).bookmark
        return html('<span class="star" title="bookmarked">★</span> ') if starred else EMPTY

    def _about(self) -> Html:
        card = self.card
        figures = [("L0", card.l0, lambda v: real(v, 1)), ("FVU", card.fvu, lambda v: real(v, 3)),
                   ("CE recovered", card.ce_recovered, share_of_whole)]  # fmt: skip
        told = [f"{name} {shown(value)}" for name, value, shown in figures if value is not None]
        words = " · ".join([card.variant, anonymous(card.model), card.site, *told])
        return html('<p class="sub summary">{words}</p>', words=words)

    def _figures(self) -> bytes:
        title = html('<h1 class="headline">Figures of {run}</h1>', run=self.card.name)
        body = still(alone(joined([title, measured(self.card)])), self.file_of)
        return self._document(f"Figures of {self.card.name}", body, FIGURES)

    def _circuit(self, name: str, file: str) -> bytes:
        found = open_graph(self.card, name)
        assert found is not None, "it was listed"
        address = CircuitAddress(run=self.card.name, graph=name)
        # Nobody can choose fewer here to see their names.
        few = share_with_names(found, int(address.nodes), int(address.edges))
        address = address.to(nodes=few)
        kept = found.shown(few, int(address.edges), ())
        scene = GraphScene(self._node_names(found), kept, address, [])
        body = html(
            '<div class="page wide circuit">{head}<section class="card"><p class="sub">{shown}</p>'
            "{picture}</section>{table}</div>",
            head=headline(scene), shown=shown_text(scene), picture=picture(scene),
            table=node_table(scene),
        )  # fmt: skip
        pages = {node: scene.names.href(found.graph.nodes[n]) for node, n in found.numbers.items()}

        def file_of(params: Mapping[str, str]) -> str:
            # A node is not picked here: it leads to its latent.
            from feature_browser.data.address import parsed

            latent = pages.get(params.get("node", ""), "")
            return self.file_of({"view": "latent", **parsed(latent)} if latent else params)

        return self._document(self._titled(name), still(body, file_of), file)

    def _node_names(self, found: OpenGraph) -> NodeNames:
        """Names of latents of the published runs, and of the graph's other runs beside this one."""
        cards, beside = dict(self.catalogue.runs), self.card.path.parent
        for name in found.graph.runs:
            unknown = sae_run(self.catalogue, self.card, name) is None
            if unknown and name == Path(name).name:
                # Of a run that is gone, latents have numbers.
                with suppress(UsageError):
                    cards.setdefault(name, read_card(beside / name, beside))
        return NodeNames(found, Catalogue(beside, cards), self.card)


def slug(name: str) -> str:
    """A name that every file system and address can have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "run"


def _latents(n: int) -> str:
    return "1 latent" if n == 1 else f"{count(n)} latents"


def _and_circuits(n: int) -> str:
    return f", {count(n)} circuit{'s' if n > 1 else ''}" if n else ""


def cover(runs: Sequence[PublishedRun], board: Html) -> bytes:
    """The site's first file: the runs beside each other."""

    def file_of(params: Mapping[str, str]) -> str:
        run = next((r for r in runs if r.card.name == params.get("run")), None)
        return "" if run is None else f"{run.folder}/{LATENTS}"

    leads = joined(
        html(
            '<li><a href="{file}">{name}</a> <span class="sub">{n}{c}</span>'
            "</li>",
            file=escaped(f"{run.folder}/{LATENTS}"), name=run.card.name,
            n=_latents(len(run.latents)), c=_and_circuits(len(run.circuits)),
        )
        for run in runs
    )  # fmt: skip
    body = html(
        '<h1 class="headline">{title}</h1><ul class="found">{leads}</ul><h2>Scoreboard</h2>{board}',
        title="What these sparse autoencoders have learned", leads=leads, board=board,
    )  # fmt: skip
    links = [("All runs", "index.html")]
    return document("Runs", still(alone(body), file_of), links=links, here="index.html", root="")

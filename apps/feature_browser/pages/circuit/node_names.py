"""The names of a graph's nodes, and links to their latents."""

from dataclasses import dataclass, field

from feature_browser.data.address import link
from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.labels import LatentNames, Name
from feature_browser.draw.numbers import activation, real, signed
from feature_browser.pages.circuit.graphs import OpenGraph, sae_run
from saelab.analysis.circuits.nodes import Node
from saelab.console import visible


@dataclass(frozen=True)
class NodeNames:
    """The runs of a graph's SAEs, and their names of latents."""

    found: OpenGraph
    catalogue: Catalogue
    owner: RunCard
    _latents: dict[str, LatentNames | None] = field(default_factory=dict, repr=False)

    def run(self, name: str) -> RunCard | None:
        """The run of this name; None if it is not below the directory of runs."""
        return sae_run(self.catalogue, self.owner, name)

    def title(self, node: Node) -> str:
        """The name of a latent with its source; empty if it has none, or for other nodes."""
        return str(self.called(node))

    def called(self, node: Node) -> Name:
        """The name of a latent; an empty one if it has none, or for other nodes."""
        if node.kind != "latent" or node.latent is None:
            return Name()
        run, latent = self.found.graph.in_run(node)
        if run not in self._latents:
            card = self.run(run)
            self._latents[run] = None if card is None else LatentNames.of(card)
        names = self._latents[run]
        return Name() if names is None or latent is None else names.best(latent)

    def href(self, node: Node, view: str = "latent", **state: object) -> str:
        """The link to a latent's page in its own run, with further parameters.

        Empty if the run or the latent does not exist.
        """
        run, latent = self.found.graph.in_run(node)
        card = self.run(run) if node.kind == "latent" else None
        if card is None or latent is None or not latent < card.d_sae:
            return ""
        return link(view, run=card.name, latent=latent, **state)

    def what(self, node: Node) -> str:
        """The node without its position, in words."""
        if node.kind == "latent":
            return f"{node.name} {node.latent}"
        error = "not applied: all of" if self.found.graph.left_out(node) else "error of"
        words = {"error": f"{error} {node.name}", "bias": f"bias {node.name}"}
        words["target"] = str(self.found.graph.facts.get("target", node.name))
        return words.get(node.kind, node.name)

    def tip(self, number: int) -> str:
        """The lines that a mark shows under the pointer."""
        found, node = self.found, self.found.graph.nodes[number]
        where = "all tokens" if node.position is None else f"{visible(found.token(node)).strip()}"
        place = "" if node.position is None else f" @{node.position}"
        lines = [f"{self.what(node)}   {where}{place}"]
        if title := self.title(node):
            lines.append(title)
        if node.kind == "latent":
            lines.append(f"activation {activation(node.value)}")
        lines.append(
            f"gives the target {signed(float(found.given[number]))}"
            f"   influence {real(float(found.influence[number]))}"
        )
        return "\n".join(lines)

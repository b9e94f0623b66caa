"""The list of a run's circuits."""

from pathlib import Path

from feature_browser.data.address import link
from feature_browser.data.catalogue import RunCard
from feature_browser.draw.boxes import alone, message
from feature_browser.draw.markup import Html, html, joined
from feature_browser.draw.numbers import UNKNOWN, count, percent, real
from feature_browser.draw.tables import Column, anchor, cell, table
from feature_browser.pages.circuit.address import CircuitAddress
from feature_browser.pages.circuit.graphs import summary
from feature_browser.pages.circuit.node_cards import number_in, ratio_in
from saelab.config import UsageError
from saelab.console import visible


def nothing(card: RunCard) -> Html:
    """How to make the first circuit, or that there is none of such a run."""
    if not card.in_circuits:
        text = (
            f"{card.name} is at {card.site}. Circuits take SAEs of one site, of the residual "
            "stream or an attention, and transcoders of MLPs, of one layer or of several."
        )
        return alone(message("No circuit of this run", text))
    return alone(
        message(
            "No circuit yet",
            "A circuit says which latents make the model say what it says after a prompt: an "
            "exact graph with attention and norms held fixed, judged by ablation in the live "
            "model. It needs the run's language model, for some seconds. Name more runs of the "
            "same model to see more of it.",
            command=f'saelab circuit {card.path.as_posix()} --prompt "…"',
        )
    )


def graph_list(
    card: RunCard, paths: list[Path], beside: list[tuple[RunCard, Path]], address: CircuitAddress
) -> Html:
    """The run's graphs, and those of other runs that have its latents."""
    problems: list[str] = []
    rows = [_row(card, path, address, problems) for path in paths]
    rows += [_row(other, path, address, problems) for other, path in beside]
    columns = [
        Column("Explained"),
        Column("Behind the prompt"),
        Column("Value", "of what is explained", numeric=True),
        Column("Nodes", numeric=True),
        Column("Edges", numeric=True),
        Column("SAE errors", "share of what the leaves give that no latent explains", numeric=True),
        Column("Faithfulness", "of the pruned graph's latents in the live model", numeric=True),
        Column("SAEs"),
    ]
    shown = [row for row in rows if row]
    notices = joined(html('<p class="notice" role="status">{t}</p>', t=text) for text in problems)
    title = f"{count(len(shown))} circuit{'s' * (len(shown) != 1)} of {card.name}"
    return html(
        '<div class="page wide circuit"><h1 class="headline">{title}</h1>{notices}{table}'
        '<p class="sub">Another one: <code>saelab circuit {path} --prompt "…"</code></p></div>',
        title=title, notices=notices, table=table(columns, shown, "Circuits"),
        path=card.path.as_posix(),
    )  # fmt: skip


def _row(card: RunCard, path: Path, address: CircuitAddress, problems: list[str]) -> list[Html]:
    try:
        found = summary(path)
    except UsageError as error:
        problems.append(str(error))
        return []
    facts = found.facts
    there = link("circuit", run=card.name, graph=path.stem)
    saes = facts.get("saes")
    value, errors = number_in(facts, "value"), number_in(facts, "scores", "error_influence")
    text = " ".join(visible(token).strip() for token in found.tokens)
    return [
        anchor(there, facts.get("target", path.stem)),
        html('<span class="text">{text}</span>', text=text),
        cell(real(value)),
        cell(count(found.n_nodes)),
        cell(count(found.n_edges)),
        cell(UNKNOWN if errors is None else percent(errors)),
        cell(real(ratio_in(facts, "faithfulness"))),
        cell(", ".join(map(str, saes)) if isinstance(saes, dict) else UNKNOWN),
    ]

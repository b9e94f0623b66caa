"""Tables of `saelab circuit`: why heads looked where they did."""

from typing import TYPE_CHECKING

from rich.table import Table

from saelab.console import cells

if TYPE_CHECKING:
    from saelab.analysis.attention.loadings import HeadLoading
    from saelab.analysis.circuits.explain import Circuit

N_PAIRS = 3


def attention_table(found: "Circuit") -> Table:
    """The attention weights that carry most of the target, each with its score's largest pairs."""
    title = "What attention carries, over all paths, and the pairs behind each score"
    table = Table(title=title, title_justify="left", box=None)
    for name, right in (
        ("head", False),
        ("looks from", False),
        ("to", False),
        ("attention", True),
        ("gives", True),
        ("score", True),
        ("query x key", False),
        ("part", True),
    ):
        table.add_column(name, justify="right" if right else "left")
    for loading in found.loadings:
        for row in _rows(loading, found.graph.tokens):
            table.add_row(*cells(*row))
    return table


def _rows(loading: "HeadLoading", tokens: tuple[str, ...]) -> list[tuple[str, ...]]:
    pairs = loading.pairs
    ends = [f"{tokens[place]} @{place}" for place in (pairs.dest, pairs.source)]
    score = f"{pairs.score:+.2f}"
    first = (
        f"{pairs.layer}.{pairs.head}",
        *ends,
        f"{pairs.pattern:.2f}",
        f"{loading.gives:+.3f}",
        score,
    )
    shown = [(f"{q.label()} x {k.label()}", part) for q, k, part in pairs.top(N_PAIRS)]
    others = pairs.score - sum(part for _, part in shown)
    shown.append((f"{pairs.products.numel() - len(shown)} other pairs", others))
    return [
        (*(first if number == 0 else ("",) * len(first)), what, f"{part:+.2f}")
        for number, (what, part) in enumerate(shown)
    ]

"""The table of architectures in docs/models.md, as the suite finds it; `make models` writes it."""

import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from lm.architectures import ARCHITECTURES, save_architecture

from saelab.analysis.attribution_check import attribution_findings
from saelab.lm.bridge import BridgeLanguageModel
from saelab.lm.conformance import SITES, Finding, check_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
START, END = "<!-- architectures: written by make models -->\n", "<!-- end -->\n"
HEAD = """\
| architecture | `model_type` | sites | logit effects | steering with a cache | DFA and graphs |
| --- | --- | --- | --- | --- | --- |
"""


@cache
def checked(name: str) -> tuple[BridgeLanguageModel, list[Finding]]:
    """A random model of the architecture and what the checks find, in float64."""
    with tempfile.TemporaryDirectory() as directory:
        path = save_architecture(Path(directory) / "model", name)
        lm, findings = check_model(path, device="cpu", dtype=torch.float64)
        return lm, [*findings, *attribution_findings(lm)]


def table() -> str:
    """The table, one line an architecture."""
    return HEAD + "".join(map(line, ARCHITECTURES))


def line(name: str) -> str:
    """An architecture's row."""
    _, findings = checked(name)
    holding = {(f.about, f.check) for f in findings if f.holds}
    sites = [site for site in SITES if (site, "reads") in holding]
    effects = [site for site in SITES if (site, "logit effects") in holding]
    cells = [
        name,
        f"`{ARCHITECTURES[name][0]}`",
        _names(sites),
        "of all of them" if effects == sites else _names(effects),
        "yes" if ("model", "steering with a cache is as without") in holding else "reads anew",
        "yes" if ("model", "graph rows sum to the logit") in holding else "refused",
    ]
    return f"| {' | '.join(cells)} |\n"


def _names(sites: list[str]) -> str:
    missing = [site for site in SITES if site not in sites]
    if not missing:
        return "all"
    few = len(missing) < len(sites)
    return ("all but " if few else "") + ", ".join(f"`{s}`" for s in (missing if few else sites))


def written() -> str:
    """What stands between the page's marks."""
    return PAGE.read_text().partition(START)[2].partition(END)[0]


def main() -> int:
    """Write the table into its page."""
    text = PAGE.read_text()
    before, mark, rest = text.partition(START)
    assert mark, f"{PAGE} has no place for the table."
    PAGE.write_text(before + START + table() + END + rest.partition(END)[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A circuit as a command that computes it, and as Python."""

from pathlib import Path
from typing import Any

from feature_browser.data.catalogue import RunCard
from feature_browser.data.elsewhere import NOWHERE, Elsewhere, command, python
from feature_browser.data.reading import list_runs, readable_features
from feature_browser.pages.circuit.address import CircuitAddress
from feature_browser.pages.circuit.graphs import circuits_of, summary
from feature_browser.pages.circuit.request import choices, chosen
from feature_browser.shell.launch import runs_directory
from saelab.config import UsageError


def circuit_elsewhere(card: RunCard, address: CircuitAddress) -> Elsewhere:
    """The graph that is shown, or what the form asks for."""
    if address.part == "explain":
        return _asked(card, address)
    path = next((one for one in circuits_of(card) if one.stem == address.graph), None)
    if path is None:
        return NOWHERE
    try:
        facts = dict(summary(path).facts)
    except UsageError:
        return NOWHERE
    shown = python(
        card,
        "from pathlib import Path",
        "from saelab.analysis.circuits.graph_file import load_graph_hdf5",
        "",
        "graph = load_graph_hdf5(Path($path))",
        "given = graph.attributions()",
        "strongest = sorted(range(len(given)), key=lambda n: -abs(given[n]))",
        "for number in strongest[:20]:",
        "    node = graph.nodes[number]",
        '    print(f"{given[number]:+.3f}", node.kind, node.name, node.latent, node.position)',
        path=path,
    )
    return Elsewhere(_command_of(card, facts), shown)


def _command_of(card: RunCard, facts: dict[str, Any]) -> str:
    """The command that computed a graph; empty if its facts do not say."""
    prompt, runs, latent = facts.get("prompt"), facts.get("runs"), facts.get("latent")
    if not isinstance(prompt, str) or not isinstance(runs, list) or not runs:
        return ""
    words: list[object] = ["--prompt", prompt]
    if isinstance(latent, str):
        words += ["--latent", latent]
    for name, option in (("token", "--target"), ("against", "--against")):
        token = _token(card, facts.get(name))
        words += [option, token] if token else []
    return command("circuit", *(_there(card, str(run)) for run in runs), *words)


def _there(card: RunCard, run: str) -> Path:
    """A run's path as the graph recorded it; if it was moved, beside the graph's own."""
    path = Path(run)
    if path.is_dir():
        return path
    return card.path if path.name == card.path.name else card.path.parent / path.name


def _token(card: RunCard, token: object) -> str:
    """A token's name, which the run's features have."""
    features = readable_features(card)
    n = len(features.file["vocabulary/offsets"]) - 1 if features else 0
    if features is None or not isinstance(token, int) or not 0 <= token < n:
        return ""
    return features.file.token(token)


def _asked(card: RunCard, address: CircuitAddress) -> Elsewhere:
    if not address.prompt.strip():
        return NOWHERE
    paths = [card.path]
    if address.saes:
        known = choices(list_runs(runs_directory()), card)
        paths = [known[name].path for name in chosen(known, address.saes)]
    given = {"target": address.target, "against": address.against, "latent": address.wanted.strip()}
    options = {name: text for name, text in given.items() if text}
    words = [word for name, text in options.items() for word in (f"--{name}", text)]
    words += ["--chat"] if address.chat else []
    words += ["--max-nodes", address.limit]
    said = command("circuit", *paths, "--prompt", address.prompt, *words)
    if any(not (path / "config.json").is_file() for path in paths):
        return Elsewhere(said)  # A set's members are the verb's to find.
    prompt = "chat_prompt(lm, $prompt)" if address.chat else "$prompt"
    return Elsewhere(
        said,
        python(
            card,
            "import saelab",
            "from saelab.analysis.circuits.explain import CircuitOptions",
            "from saelab.host.host import load_model_of",
            *(["from saelab.lm.prompt import chat_prompt"] if address.chat else []),
            "",
            "runs = [saelab.Run(path) for path in $paths]",
            "lm = load_model_of(runs)",
            "options = CircuitOptions(**$options, max_nodes=$limit, n_members=0)",
            f"found = saelab.explain_runs(lm, runs, {prompt}, options)",
            "print(found.graph.facts['target'], found.faithfulness)",
            "saelab.figure(found.pruned).show()",
            paths=paths,
            prompt=address.prompt,
            options=options,
            limit=int(address.limit),
        ),
    )

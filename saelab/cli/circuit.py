"""`saelab circuit`: the latents that make the model predict a token."""

import glob
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from saelab.cli.circuit_prompts import Asked, caveats, each, read_prompts, scores_tables
from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, Heading, UsageError
from saelab.console import note
from saelab.files import check_file

if TYPE_CHECKING:
    from saelab.analysis.circuits.explain import Circuit


class CircuitArguments(Config):
    """Explain a next-token prediction by the latents of one or more runs, or of a set of them.

    With attention patterns and norm scales held at their values on the prompt, a logit is a sum
    over paths from tokens, errors, MLPs and biases through the latents of the SAEs (attn.hook_z,
    residual stream, transcoders). The graph of these direct effects is exact; its most influential
    part is printed and drawn. The live model then measures whether that part matters: faithfulness
    (the other latents ablated; 1 is perfect) and completeness (these latents ablated; 0 is
    perfect), compared with the same number of random latents.

    An SAE is applied only to activations like those it was trained on. Elsewhere, at <bos> and at
    massive activations, its error node carries the whole activation; effects from there are listed
    separately.

    Writes into circuits/ of the first run: NAME.json (the pruned graph) and NAME.h5 (the whole
    graph, for the Circuit page of `saelab browse`).

        saelab circuit runs/demo/topk-residual runs/demo/topk-attention
            --prompt "anna met john in the park . john gave a book to"
        saelab circuit runs/set --prompts tiny --n-latents 40
    """

    runs: Annotated[tuple[Path, ...], Positional("RUN")]
    """Directories of the runs: all of one model, each at a site of its own. A set (see `saelab
    train sweep`) stands for all of its runs."""
    prompt: Annotated[str | None, Heading("Prompt")] = None
    """Text whose next token is explained; it may name special tokens."""
    prompts: Path | None = None
    """Explain several prompts and print a table of their scores: a file with a JSON object on each
    line, {"prompt": "...", "target": "...", "against": "..."}, the last two optional. tiny: an
    indirect object, an induction and a bracket of the tiny model's language. A prompt that is
    refused is named with its reason and left out; the exit code is then 1."""
    chat: bool = False
    """Put the prompt through the model's chat template; it is a user's message, or messages as JSON
    (`[{"role": "user", "content": ...}]`)."""
    target: Annotated[str | None, Heading("What is explained")] = None
    """Token whose logit is explained, by its name (" dog" in vocabularies with spaces); default:
    the most likely token."""
    against: str | None = None
    """Explain the difference to this token's logit; default: to the mean logit."""
    latent: str | None = None
    """Explain a latent's value instead of a token: SAE:NUMBER at the last position where it fires,
    or SAE:NUMBER@POSITION (0 is <bos>). An SAE is named by its run's directory."""
    stop_share: Annotated[float, Heading("Graph")] = Field(default=0.95, gt=0, le=1)
    """Compute the inputs of latents, the most influential ones first, until those have this share
    of the influence of all latents."""
    max_nodes: int = Field(default=4096, gt=0)
    """Stop at this number of them, which a real model's prompt reaches before."""
    precision: Literal["float32", "float64"] = "float32"
    """Precision of the inputs; in float32 they sum to a node's value within 1e-4 of it."""
    node_threshold: float = Field(default=0.8, ge=0, le=1)
    """Share of all influence that the kept nodes have together."""
    edge_threshold: float = Field(default=0.98, ge=0, le=1)
    """Share of the kept nodes' edge influence that the kept edges have together."""
    threshold: Annotated[float | None, Heading("Test in the live model")] = Field(
        default=None, ge=0
    )
    """In the live model, judge the latents that hierarchical attribution keeps at this share of the
    target's value (arXiv 2405.13868), instead of the kept nodes."""
    n_latents: int | None = Field(default=None, gt=0)
    """In the live model, judge this number of the graph's latents, the most influential ones,
    instead of the kept nodes."""
    n_thinned: int = Field(default=0, ge=0)
    """Also judge this number of the graph's latents, thinned in the live model from the twice as
    many that are most influential: round by round those are left out without which the target stays
    closest to its value. Beside as many of random latents, thinned likewise. 0 for none."""
    n_members: int = Field(default=40, ge=0)
    """Also judge this number of latents with the most support for the target by integrated
    gradients in the live model; they include latents that direct attention. 0 for none."""
    curve: bool = False
    """Also judge the best 5, 10, 20, 40, ... latents of the graph and by gradients, which shows how
    many the prediction needs."""
    n_interventions: int = Field(default=5, ge=0)
    """Take this many latents away one by one, those that give most, and print what the graph
    predicts beside what the live model does. 0 for none."""
    n_attention: Annotated[int, Heading("Attention")] = Field(default=5, ge=0)
    """Say why a head looked where it did, by pairs of latents, for this number of attention
    weights: those that carry most of the target's value between tokens. 0 for none."""
    figure: Annotated[Path | None, Heading("Output")] = None
    """Write a picture of the pruned graph to this HTML file."""
    circuit_tracer: Path | None = None
    """Write the pruned graph to this file in circuit-tracer's JSON format, which Neuronpedia
    reads."""
    top: int = Field(default=15, gt=0)
    """Number of nodes to print."""
    model: Annotated[str | None, Heading("Machine")] = None
    """The language model; default: the one that the first run was trained on."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    json_: Annotated[bool, Heading("Output")] = False
    """Print JSON instead of a table."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(CircuitArguments, "circuit", arguments)
    for option, path in (("--figure", args.figure), ("--circuit-tracer", args.circuit_tracer)):
        if path is not None:
            check_file(path, option)
    if args.threshold is not None and args.n_latents is not None:
        raise UsageError(
            "--threshold and --n-latents both say which latents are judged; give one of them."
        )
    if args.prompts is not None:
        return _several(args, args.prompts)
    one = Asked(_one(args), args.target, args.against)
    with _asking(args) as explained:
        found, path = explained(one)
    _extras(args, found, path.stem)
    if args.json_:
        print(json.dumps(_values(args, found, path), indent=2, allow_nan=False))
        return 0
    _print(args, found)
    print(path)
    return 0


def _one(args: CircuitArguments) -> str:
    if not args.prompt:
        raise UsageError("Nothing is asked: give --prompt TEXT, or --prompts FILE.")
    return args.prompt


def _several(args: CircuitArguments, file: Path) -> int:
    given = ("prompt", "target", "against", "latent", "figure", "circuit_tracer")
    if extra := [name for name in given if getattr(args, name) is not None]:
        raise UsageError(
            f"--prompts asks for several circuits, and --{extra[0].replace('_', '-')} is of one; "
            "leave one of them out."
        )
    asked = read_prompts(file)
    with _asking(args) as explained:
        found, refused = each(explained, asked)
    for sentence in refused:
        note(sentence)
    if args.json_:
        values = [_values(args, circuit, path) for circuit, path in found]
        print(json.dumps(values, indent=2, allow_nan=False))
        return 1 if refused else 0
    from saelab.cli.tables import wide_console

    console = wide_console()
    for table in scores_tables([circuit for circuit, _ in found]):
        console.print(table)
    for line in caveats([circuit for circuit, _ in found]):
        console.print(line, markup=False, highlight=False)
    for _, path in found:
        print(path)
    return 1 if refused else 0


@contextmanager
def _asking(args: CircuitArguments) -> "Iterator[Callable[[Asked], tuple[Circuit, Path]]]":
    """Gives a prompt's circuit and where the first run keeps it; model and SAEs are loaded."""
    # Imported here, so that --help does not wait for torch.
    from saelab.analysis.circuits.explain import CircuitOptions, check_sizes
    from saelab.analysis.circuits.session import Session, usable_runs
    from saelab.lock import writing

    with writing(usable_runs(args.runs)[0].path):
        options = CircuitOptions(
            latent=args.latent,
            max_nodes=args.max_nodes,
            stop_share=args.stop_share,
            precision=args.precision,
            node_threshold=args.node_threshold,
            edge_threshold=args.edge_threshold,
            threshold=args.threshold,
            n_latents=args.n_latents,
            n_thinned=args.n_thinned,
            n_members=args.n_members,
            curve=args.curve,
            n_interventions=args.n_interventions,
            n_attention=args.n_attention,
        )
        check_sizes(options)
        session = Session(args.device, args.model)
        session.loaded(usable_runs(args.runs))

        def explained(one: Asked) -> "tuple[Circuit, Path]":
            own = options.model_copy(update={"target": one.target, "against": one.against})
            return session.explain(args.runs, one.prompt, own, chat=args.chat)

        yield explained


def _extras(args: CircuitArguments, found: "Circuit", name: str) -> None:
    """Optional results beside the graph's own files."""
    from saelab.files import atomic_write, atomic_write_json
    from saelab.lock import remove_unfinished

    for path in (args.circuit_tracer, args.figure):
        if path is not None:
            remove_unfinished(path.parent, f".{glob.escape(path.name)}.*.tmp")
    if args.circuit_tracer is not None:
        from saelab.analysis.circuits.circuit_tracer import circuit_tracer_json

        model = Path(found.graph.facts["model"]).name
        atomic_write_json(
            args.circuit_tracer, circuit_tracer_json(found.pruned, slug=name, scan=model)
        )
    if args.figure is not None:
        from saelab.figures.circuits import circuit_figure

        html = circuit_figure(found.pruned).to_html(include_plotlyjs=True, div_id="circuit")
        atomic_write(args.figure, html.encode())


def _values(args: CircuitArguments, found: "Circuit", path: Path) -> dict[str, Any]:
    from saelab.analysis.circuits.explain import largest_inputs, left_out_inputs

    tokens = found.graph.tokens
    return {
        "path": str(path),
        "facts": found.pruned.facts,
        "counts": found.pruned.counts,
        "nodes": [
            {"node": label, "attribution": given}
            for label, given in largest_inputs(found.graph, args.top)
        ],
        "left_out": [
            {"position": place, "token": tokens[place], "saes": saes, "attribution": given}
            for place, saes, given in left_out_inputs(found.graph)
        ],
    }


def _print(args: CircuitArguments, found: "Circuit") -> None:
    from rich.table import Table

    from saelab.analysis.circuits.explain import largest_inputs
    from saelab.cli.circuit_tables import (
        attention_table,
        interventions_table,
        outside_table,
        summary,
    )
    from saelab.cli.tables import wide_console
    from saelab.console import cells, shown

    facts, console = found.graph.facts, wide_console()
    title = f"{shown(facts['target'])} = {facts['value']:.3f}"
    if "probability" in facts:
        title += f" (probability {facts['probability']:.3f})"
    console.print(title, markup=False, style="bold")
    table = Table(title="What gives most, over all paths", title_justify="left", box=None)
    table.add_column("node")
    table.add_column("token")
    table.add_column("gives", justify="right")
    positions = {node.label(): node.position for node in found.graph.nodes}
    for label, given in largest_inputs(found.graph, args.top):
        place = positions[label]
        token = "" if place is None else found.graph.tokens[place]
        table.add_row(*cells(label, token, f"{given:+.3f}"))
    console.print(table)
    if (outside := outside_table(found)) is not None:
        console.print(outside)
    if found.loadings:
        console.print(attention_table(found))
    if found.interventions:
        console.print(interventions_table(found))
    console.print(summary(found, n_members=args.n_members), markup=False)

"""`saelab plan`: what SAEs of a model cost, on any number of GPUs, before anything runs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from saelab.cli.options import Metavar
from saelab.cli.parse import parse
from saelab.config import MAX_D_SAE, Config, Heading, UsageError
from saelab.files import check_file

if TYPE_CHECKING:
    from saelab.bench.costs import Fleet, Work
    from saelab.bench.pace import Pace
    from saelab.bench.ways import Way


class PlanArguments(Config):
    """Say what SAEs of a model cost: memory, disk, traffic, time and GPU hours of every way.

    Nothing is downloaded and no weight is read: a config.json is enough. The ways are a store that
    all SAEs train from, each on as few GPUs as hold it or on all; the running model for each SAE
    alone (`train --live`); and one pass of the model for all (`train sweep --live`).

        saelab plan --model checkpoints/gpt2 --sites blocks.6.hook_resid_post --d-sae 32768
            --n-tokens 500000000 --kind h100

    Every layer, on 8 GPUs:

        saelab plan --model gemma/config.json --sites "blocks.*.hook_resid_post" --d-sae 131072
            --n-tokens 1000000000 --kind h200 --gpus 8

    With rates of the machine on which `saelab bench road --json road.json` ran:

        saelab plan --model tiny --sites blocks.2.hook_resid_post --d-sae 1024 --k 12
            --n-tokens 4000000 --rates road.json
    """

    model: Annotated[str, Heading("Work")]
    """A directory with a config.json, that file, tiny, or a name whose configuration is in the
    local hub cache."""
    sites: Annotated[tuple[str, ...], Metavar("HOOK")]
    """One SAE is trained at each; * stands for every layer: "blocks.*.hook_resid_post"."""
    target_sites: Annotated[tuple[str, ...], Metavar("HOOK")] = ()
    """Transcoders: the sites that they reconstruct, one for each of --sites."""
    variant: str = "topk"
    """The variant; `saelab train --help` lists them."""
    d_sae: int = Field(gt=0, le=MAX_D_SAE)
    """Latents of each SAE."""
    k: int = Field(default=64, gt=0)
    """Active latents per token, exact, average or expected."""
    n_tokens: int = Field(gt=0)
    """Tokens that each SAE trains on; a store holds all of them."""
    batch_size: int = Field(default=8192, gt=0)
    """Tokens per step."""
    context_length: int = Field(default=128, gt=0)
    """Positions per context of the model."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the model and of the large products."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Dtype of Adam's moments, as for `saelab train`."""
    n_eval_tokens: int = Field(default=50_000, gt=0)
    """Tokens that evaluate reads for each SAE."""
    n_feature_tokens: int = Field(default=500_000, gt=0)
    """Tokens that features reads for each SAE."""
    kind: Annotated[str, Heading("Machines"), Metavar("GPU")] = "h100"
    """The GPUs, by name in saelab/bench/kinds.json: h100, h200, a100, rtx-4090, ..."""
    rates: Path | None = None
    """Rates that `saelab bench road --json` measured; --kind still says how fast links are."""
    gpus: int = Field(default=1, gt=0)
    """Number of GPUs in all."""
    per_host: int = Field(default=8, gt=0)
    """GPUs of one host."""
    memory: float | None = Field(default=None, gt=0)
    """Memory of a GPU in GB; default: that of its kind."""
    disk: float | None = Field(default=None, gt=0)
    """Free disk for a store, in GB; default: no limit."""
    disk_rate: float | None = Field(default=None, gt=0)
    """GB per second that a host reads and writes; default: 5 and 1.3, or as --rates measured."""
    network: float | None = Field(default=None, gt=0)
    """GB per second and GPU, one way, between hosts; default: as such hosts are usually built."""
    json_: Annotated[Path | None, Heading("Output"), Metavar("FILE")] = None
    """Also write the plan to this file, as JSON."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(PlanArguments, "plan", arguments)
    if args.json_ is not None:
        check_file(args.json_, "--json")
    from saelab.bench.costs import Fleet, work
    from saelab.bench.ways import ways
    from saelab.lm.shape import model_shape
    from saelab.sae.variants import sized

    pace = _pace(args)
    shape = model_shape(args.model)
    shape.check_length(args.context_length)
    job = work(
        shape,
        shape.sites(args.sites),
        sized(args.variant, args.d_sae, args.k),
        args.n_tokens,
        shape.sites(args.target_sites),
        batch_size=args.batch_size,
        length=args.context_length,
        n_evaluated=args.n_eval_tokens,
        n_features=args.n_feature_tokens,
        half=args.precision == "bfloat16",
        moments=args.moments,
    )
    if args.moments != "float32" and not (job.kernels and pace.kernels):
        raise UsageError(
            f"--moments {args.moments} needs the fused step, and a {args.variant} SAE has none on "
            f"{pace.name}; leave it out."
        )
    disk = None if args.disk is None else int(args.disk * 1e9)
    fleet = Fleet(pace, args.gpus, args.per_host, disk)
    found = ways(job, fleet)
    _print(job, fleet, found)
    if args.json_ is not None:
        from saelab.files import atomic_write_json

        atomic_write_json(args.json_, _values(args, job, fleet, found))
        print(args.json_)
    return 0


def _pace(args: PlanArguments) -> "Pace":
    from dataclasses import replace

    from saelab.bench.pace import pace_of_kind, pace_of_road

    pace = pace_of_kind(args.kind)
    if args.rates is not None:
        pace = pace_of_road(args.rates, pace)
    disk = dict.fromkeys(("read", "write"), args.disk_rate)
    given = {"memory": args.memory, **disk, "network": args.network}
    rates: dict[str, Any] = {name: 1e9 * value for name, value in given.items() if value}
    return replace(pace, **rates)


def _values(args: PlanArguments, job: "Work", fleet: "Fleet", found: "list[Way]") -> dict[str, Any]:
    from dataclasses import asdict

    from saelab.bench.ways import cheapest
    from saelab.provenance import provenance

    best = cheapest(found)
    facts = {
        "wall_s": lambda way: way.wall,
        "gpu_hours": lambda way: way.gpu_hours,
        "limit": lambda way: way.limit,
    }
    return {
        "setting": args.model_dump(mode="json", exclude={"json_"}),
        "model": asdict(job.shape),
        "n_saes": len(job.sites),
        "pace": asdict(fleet.pace),
        "ways": [asdict(way) | {key: of(way) for key, of in facts.items()} for way in found],
        "cheapest": best and best.name,
        "provenance": provenance(),
    }


def _print(job: "Work", fleet: "Fleet", found: "list[Way]") -> None:
    """The ways side by side, and what follows."""
    from rich.table import Table
    from rich.text import Text

    from saelab.bench.ways import cheapest
    from saelab.cli.tables import wide_console
    from saelab.console import si

    shape, console, n = job.shape, wide_console(), len(job.sites)
    kind = "transcoder" if job.targets else "SAE"
    best = cheapest(found)
    before = [
        f"{shape.name}: {shape.n_layers} layers, d_model {shape.d_model}, "
        f"{si(shape.weights)} weights",
        f"{n} {kind}{'s' * (n > 1)} ({job.sae.variant}, {job.sae.d_sae} latents, k {job.k}), "
        f"{si(job.n_tokens)} tokens each, {job.n_steps} steps; {fleet.gpus} x {fleet.pace.name}, "
        f"up to {fleet.per_host} a host\n",
    ]
    after = [
        "",
        *(f"Impossible: {way.name}: {way.problem}." for way in found if way.problem),
        *dict.fromkeys(f"Beside: {way.note}." for way in found if way.note),
        "No way fits." if best is None else f"Cheapest that fits: {best.name}.",
        *fleet.pace.sources,
    ]
    table = Table(box=None)
    for i, name in enumerate(["", *(way.name for way in found)]):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for line in _lines(found):
        table.add_row(*map(Text, line))
    for text in before:
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    console.print(table)
    for text in after:
        console.print(text, soft_wrap=True, markup=False, highlight=False)


def _lines(found: "list[Way]") -> Iterator[list[str]]:
    """The lines of the table, a cell for each way; parts stand below their sum."""
    from saelab.console import duration, in_bytes

    def parts(
        of: "Callable[[Way], dict[str, Any]]", show: Callable[[Any], str]
    ) -> Iterator[list[str]]:
        for name in dict.fromkeys(part for way in found for part in of(way)):
            values = [of(way).get(name) for way in found]
            yield [f"  {name}", *(show(value) if value else "-" for value in values)]

    yield ["GPUs used", *(str(way.gpus) for way in found)]
    yield ["GPUs that share an SAE", *(str(way.shards) for way in found)]
    if any(way.replicas > 1 for way in found):
        yield ["replicas of them", *(str(way.replicas) for way in found)]
    yield ["memory of a GPU", *(in_bytes(sum(way.memory.values())) for way in found)]
    yield from parts(lambda way: way.memory, in_bytes)
    yield ["disk", *(in_bytes(way.disk) if way.disk else "-" for way in found)]
    yield from parts(lambda way: way.traffic, in_bytes)
    yield ["time", *(duration(way.wall) for way in found)]
    yield from parts(lambda way: way.seconds, duration)
    yield ["GPU hours", *(f"{way.gpu_hours:.3g}" for way in found)]
    yield ["takes longest", *(way.limit for way in found)]

"""`saelab bench scale`: one SAE's step in 1, 2, ... processes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from saelab.cli.bench_step import shape_of, write_json
from saelab.cli.options import Metavar
from saelab.config import Config, UsageError
from saelab.files import check_file
from saelab.ranks import Ranks

if TYPE_CHECKING:
    from saelab.bench.machine import StepShape


class ScaleArguments(Config):
    """Time one SAE's step in 1, 2, ... processes that share its latents.

    Strong scaling keeps the SAE; weak scaling keeps the latents of a process. What does not fit is
    said and left out. The processes are started by torch's launcher, one GPU each; on the CPU they
    exchange by gloo. With --replicas it also measures replicas that share out the rows of a batch;
    weak scaling then keeps the rows of each replica.

        saelab bench scale --processes 1 2 --configs 2304:65536:64:8192 --json scale.json
        saelab bench scale --processes 1 8 16 --replicas 2

    On several hosts start it yourself on each; it then measures that number of processes alone:

        torchrun --nnodes 2 --nproc-per-node 8 ... -m saelab.cli bench scale --json scale.json
    """

    processes: Annotated[tuple[int, ...], Metavar("N")] = ()
    """Numbers of processes; default: 1, 2, 4, ... up to the number of GPUs, or 1 and 2."""
    configs: Annotated[tuple[str, ...], Metavar("D:M:K:B")] = ()
    """Sizes, each as d_in:d_sae:k:rows per batch; default: 768:32768:32:8192 on CUDA,
    128:2048:16:1024 elsewhere."""
    replicas: int = Field(default=1, gt=0)
    """Also measure so many replicas, in each number of processes that is a multiple of it."""
    variant: str = "topk"
    """The variant; several processes train the TopK family and JumpReLU."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the large products."""
    steps: int = Field(default=20, gt=0)
    """Number of timed steps, whose median counts; untimed steps come first."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    json_: Annotated[Path | None, Metavar("FILE")] = None
    """Also write the figures to this file, as JSON."""


def scale(args: ScaleArguments, own: list[str]) -> int:
    """Start the processes and print the table; or measure, as one of torchrun's processes."""
    if args.json_ is not None:
        check_file(args.json_, "--json")
    if "RANK" in os.environ:
        return _measure(args)
    from saelab.bench.scale import launch

    if bad := [n for n in args.processes if n < 1]:
        raise UsageError(f"--processes {bad[0]} is not positive.")
    # Refused here, in one sentence: each process of a launch would say it, with torch's traceback.
    counts = args.processes or _default(args)
    if not any(n % args.replicas == 0 for n in counts):
        raise UsageError(
            f"--replicas {args.replicas} divides none of --processes {' '.join(map(str, counts))}; "
            "add a multiple of it."
        )
    _shapes(args)
    found = list(launch(counts, args.replicas, _passed_on(own)))
    rows = [row for each in found for row in each["steps"]]
    _print(rows)
    write_json(args.json_, {**found[0], "steps": rows})
    return 0


def _shapes(args: ScaleArguments) -> "list[StepShape]":
    """The sizes that are asked for.

    Raises:
        UsageError: one cannot be built.
    """
    from saelab.bench.step import step_config
    from saelab.lm.load import resolve_device

    cuda = resolve_device(args.device).type == "cuda"
    default = "768:32768:32:8192" if cuda else "128:2048:16:1024"
    shapes = [shape_of(text) for text in args.configs or (default,)]
    for shape in shapes:
        step_config(args.variant, shape, precision=args.precision).sae.check()
        if shape.batch % args.replicas:
            raise UsageError(
                f"--replicas {args.replicas} cannot share out the {shape.batch} rows of "
                f"--configs {shape}; take a multiple of it."
            )
    return shapes


def _default(args: ScaleArguments) -> list[int]:
    """1, 2, 4, ... processes up to the number of GPUs; without GPUs 1 and 2."""
    from saelab.lm.load import resolve_device

    if resolve_device(args.device).type != "cuda":
        return [1, 2]
    import torch

    n = torch.cuda.device_count()
    return [2**i for i in range(n.bit_length())]


def _passed_on(own: Sequence[str]) -> list[str]:
    """The command line for each launch: without what differs among them."""
    kept, dropped = [], False
    for word in own:
        if word.startswith("--"):
            dropped = word.partition("=")[0] in ("--json", "--processes", "--replicas")
        if not dropped:
            kept.append(word)
    return kept


def _measure(args: ScaleArguments) -> int:
    """Measure in this launch's processes; the first one reports."""
    from contextlib import nullcontext
    from dataclasses import asdict

    from saelab.bench.scale import measure_own
    from saelab.lm.load import own_device
    from saelab.provenance import provenance
    from saelab.training.together import Together, together

    ranks, device = Ranks.from_environment(), own_device(args.device)
    shapes = _shapes(args)
    options = {"precision": args.precision, "steps": args.steps}
    found = []
    with nullcontext(Together()) if ranks.world == 1 else together(ranks, device) as all_of_us:
        for replicas in sorted({1, args.replicas}):
            all_of_us.replicate(replicas)
            for shape in shapes:
                found += measure_own(args.variant, shape, all_of_us, device, **options)
    if not ranks.leads:
        return 0
    rows = [asdict(one) for one in found]
    if args.json_ is None:
        _print(rows)
    setting = args.model_dump(mode="json", exclude={"json_", "processes"})
    values = {"benchmark": "scale", "device": _name(device.type), "setting": setting}
    write_json(args.json_, {**values, "steps": rows, "provenance": provenance()})
    return 0


def _name(kind: str) -> str:
    import torch

    return torch.cuda.get_device_name() if kind == "cuda" else kind


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    from saelab.bench.scale import gains
    from saelab.console import si

    print(
        f"{'scaling':<7} {'processes':>9} {'d/m/k':<17} {'rows':>7} {'way':<9} {'step':>9}"
        f" {'tokens/s':>9} {'speed-up':>8} {'of ideal':>8} {'peak':>9}"
    )
    pairs = zip(rows, gains(rows), strict=True)
    for row, (gain, share) in sorted(pairs, key=lambda pair: (pair[0]["kind"], pair[0]["d_in"])):
        shape = f"{row['d_in']}/{row['d_sae']}/{row['k']}"
        shown = ("-", "-") if gain is None or share is None else (f"{gain:.2f}", f"{share:.0%}")
        peak = f"{row['peak_bytes'] / 2**30:.2f} GiB" if row["peak_bytes"] else "-"
        step = f"{1e3 * row['seconds']:.4g} ms"
        n = str(row["processes"])
        if row["replicas"] > 1:
            n = f"{row['replicas']} x {row['processes'] // row['replicas']}"
        print(
            f"{row['kind']:<7} {n:>9} {shape:<17} {row['batch']:>7} {row['way']:<9} {step:>9}"
            f" {si(row['batch'] / row['seconds']):>9} {shown[0]:>8} {shown[1]:>8} {peak:>9}"
        )
    print(
        "\nStrong: the same SAE in more processes. Weak: as many latents in each process; its "
        "speed-up is\nof latents per second."
    )
    if any(row["replicas"] > 1 for row in rows):
        print(
            "R x N: R replicas of N processes share out the rows; weak: as many rows in each, and "
            "the\nspeed-up is of latents times rows per second."
        )

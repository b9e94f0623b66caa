"""`saelab bench step`: the time of one optimizer step, beside the machine's limit."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from saelab.cli.options import Metavar
from saelab.config import Config, UsageError
from saelab.files import check_file

if TYPE_CHECKING:
    import torch

    from saelab.bench.machine import Rates, StepShape
    from saelab.bench.step import StepTimes
    from saelab.kernels.rules import FusedRule
    from saelab.sae.base import AbstractSAEConfig
    from saelab.training.config import TrainConfig

ON_CUDA = ("768:32768:32:8192", "2304:65536:64:8192", "4096:131072:64:8192")
ON_CPU = ("128:2048:16:1024", "768:8192:32:1024")


class StepArguments(Config):
    """Time one optimizer step, as `saelab train` does it, on activations in memory.

    The floor is the time that this machine needs, at its measured rates, for the encoder's matrix
    product, one pass over the pre-activations, and Adam's memory traffic.

        saelab bench step
        saelab bench step --variants topk batch-topk matryoshka --configs 768:32768:32:8192
    """

    configs: Annotated[tuple[str, ...], Metavar("D:M:K:B")] = ()
    """Sizes, each as d_in:d_sae:k:rows per batch; default: three sizes on CUDA, two small ones
    elsewhere."""
    variants: tuple[str, ...] = ("topk",)
    """Variants to time, with their defaults; `saelab train --help` lists them."""
    transcoder: bool = False
    """Time transcoders: SAEs that reconstruct other rows than they read, of the same width."""
    skip: bool = False
    """Give transcoders a skip connection."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the large products, as for `saelab train`; steps that a variant brings itself (bsc,
    tsc, gsc) are in float32."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Dtype of Adam's moments, as for `saelab train`; bfloat16 is for fused steps."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest global gradient norm; default: no clipping."""
    dead: float = Field(default=0, ge=0, lt=1)
    """Share of latents that are dead, so that AuxK works; for fused steps of variants with AuxK.
    The step is also timed without."""
    steps: int = Field(default=30, gt=0)
    """Number of timed steps, whose median counts; untimed steps come first."""
    dense: bool = True
    """Also time a TopK step in plain torch (compiled on CUDA, bfloat16 autocast)."""
    figure: Path | None = None
    """Write the picture to this HTML file."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    json_: Annotated[Path | None, Metavar("FILE")] = None
    """Also write the figures to this file, as JSON."""


def run(args: StepArguments) -> int:
    """Time every variant at every size."""
    for option, path in (("--json", args.json_), ("--figure", args.figure)):
        if path is not None:
            check_file(path, option)
    from saelab.bench.machine import measure_rates
    from saelab.lm.load import resolve_device

    device = resolve_device(args.device)
    cuda = device.type == "cuda"
    sizes = [shape_of(text) for text in args.configs or (ON_CUDA if cuda else ON_CPU)]
    shapes = [replace(size, moments=args.moments) for size in sizes]
    if args.dead:
        shapes = [size for shape in shapes for size in (shape, replace(shape, dead=args.dead))]
    _check(args, shapes, device)
    rates = measure_rates(device, size=8192 if cuda else 1024)
    results = _time(args, shapes, rates, device.type)
    if args.figure is not None:
        from saelab.figures.bench import step_figure
        from saelab.files import atomic_write

        page = step_figure(results).to_html(include_plotlyjs=True, div_id="steps")
        atomic_write(args.figure, page.encode())
    _print(rates, results)
    if args.figure is not None:
        print(args.figure)
    write_json(args.json_, _values(args, rates, results, device.type))
    return 0


def write_json(path: Path | None, values: Mapping[str, object]) -> None:
    """Write what a benchmark measured, and print the path, if one was given."""
    if path is None:
        return
    from saelab.files import atomic_write_json

    atomic_write_json(path, values)
    print(path)


def shape_of(text: str, option: str = "--configs") -> "StepShape":
    """The size that a value of this option says.

    Raises:
        UsageError: it says none.
    """
    from saelab.bench.machine import StepShape

    parts = text.split(":")
    if len(parts) not in (3, 4) or not all(part.isdigit() and int(part) for part in parts):
        raise UsageError(
            f"{option} {text} is not D:M:K or D:M:K:B in positive numbers, such as "
            "768:32768:32:8192."
        )
    return StepShape(*map(int, parts))


def _check(args: StepArguments, shapes: "Sequence[StepShape]", device: "torch.device") -> None:
    """Refuse sizes that cannot be built, before anything is timed."""
    from saelab.bench.step import check_fits

    if args.skip and not args.transcoder:
        raise UsageError("--skip is for transcoders; add --transcoder.")
    for variant in args.variants:
        for shape in shapes:
            config = _config(args, variant, shape).sae
            config.check()
            if args.moments != "float32":
                _fused_rule("--moments bfloat16", variant, config, device)
            if args.dead:
                _check_dead(variant, config, shape.d_in, device)
    for shape in shapes:
        check_fits(shape, device)


def _check_dead(
    variant: str, config: "AbstractSAEConfig", d_in: int, device: "torch.device"
) -> None:
    """Refuse a variant of which no latent can be made silent in a step with AuxK."""
    from saelab.sae.aux_k import AuxKConfig

    if not isinstance(config, AuxKConfig) or not config.n_aux(d_in):
        raise UsageError(f"--dead is for variants with AuxK, and {variant} has none.")
    if _fused_rule("--dead", variant, config, device).has_one_matrix:
        raise UsageError(f"--dead cannot silence latents of {variant}: its atoms encode.")


def _fused_rule(
    option: str, variant: str, config: "AbstractSAEConfig", device: "torch.device"
) -> "FusedRule":
    """The variant's rule, which this option is for.

    Raises:
        UsageError: there is none.
    """
    # What the rule is does not depend on the width.
    kind = device.type
    rule = config.build(8).fused_rule() if kind == "cuda" else f"it needs CUDA, not {kind}"
    if isinstance(rule, str):
        raise UsageError(f"{option} is for fused steps, and {variant} has none: {rule}.")
    return rule


def _config(args: StepArguments, variant: str, shape: "StepShape") -> "TrainConfig":
    from saelab.bench.step import step_config

    return step_config(
        variant, shape, precision=args.precision, clip_norm=args.clip_norm,
        transcoder=args.transcoder, skip=args.skip,
    )  # fmt: skip


def _time(
    args: StepArguments, shapes: "Sequence[StepShape]", rates: "Rates", kind: str
) -> "list[StepTimes]":
    import torch

    from saelab.bench.step import time_dense, time_step
    from saelab.console import progress

    results: list[StepTimes] = []
    device = torch.device(kind)
    with progress("Time", len(shapes) * len(args.variants), "steps") as bar:
        for shape in shapes:
            timed = args.dense and not shape.dead
            dense = time_dense(shape, device, steps=args.steps) if timed else None
            for variant in args.variants:
                config = _config(args, variant, shape)
                found = time_step(config, shape, rates, device, steps=args.steps)
                results.append(replace(found, dense=dense))
                bar.advance(1, f"{variant} {1e3 * found.seconds:.3g} ms")
                if kind == "cuda":
                    torch.cuda.empty_cache()
    return results


def _values(
    args: StepArguments, rates: "Rates", results: "Sequence[StepTimes]", kind: str
) -> dict[str, object]:
    import torch

    from saelab.provenance import provenance

    name = torch.cuda.get_device_name() if kind == "cuda" else kind
    return {
        "benchmark": "step",
        "device": name,
        "precision": args.precision,
        "clip_norm": args.clip_norm,
        "rates": asdict(rates),
        "steps": [{**asdict(result), "ratio": result.ratio} for result in results],
        "provenance": provenance(),
    }


def _print(rates: "Rates", results: "Sequence[StepTimes]") -> None:
    from saelab.console import si

    names = [r.variant + r.shape.kind for r in results]
    wide = max(17, *map(len, names))

    print(
        f"{'d/m/k':<15} {'rows':>6} {'variant':<{wide}} {'way':<8} {'step':>9} {'floor':>9}"
        f" {'ratio':>6} {'dense':>9} {'tokens/s':>9} {'peak':>9}"
    )
    for r, name in zip(results, names, strict=True):
        shape = f"{r.shape.d_in}/{r.shape.d_sae}/{r.shape.k}"
        dense = "-" if r.dense is None else f"{1e3 * r.dense[0]:.4g} ms"
        peak = f"{r.peak_bytes / 2**30:.2f} GiB" if r.peak_bytes else "-"
        print(
            f"{shape:<15} {r.shape.batch:>6} {name:<{wide}} {r.way:<8}"
            f" {f'{1e3 * r.seconds:.4g} ms':>9} {f'{1e3 * r.floor:.4g} ms':>9} {r.ratio:>6.2f}"
            f" {dense:>9} {si(r.tokens_per_second):>9} {peak:>9}"
        )
    for r, name in zip(results, names, strict=True):
        if r.stages:
            parts = ", ".join(f"{part} {1e3 * t:.3g}" for part, t in r.stages.items())
            print(f"\n{name} {r.shape.d_in}/{r.shape.d_sae}/{r.shape.k}, parts in ms: {parts}")
    print(
        f"\nThis machine: {si(rates.matmul)}FLOP/s in bfloat16 products, {si(rates.copy)}B/s "
        "copied. dense: a TopK step in plain torch."
    )

"""`saelab bench live`: a live sweep of a whole model, beside its passes and its SAEs' steps."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field

from saelab.cli.bench_road import sizes
from saelab.cli.bench_step import write_json
from saelab.cli.options import Metavar
from saelab.config import MAX_D_SAE, Config, Heading
from saelab.files import check_file, check_writable
from saelab.provenance import provenance


class LiveArguments(Config):
    """Measure a transcoder and an attention SAE at every layer, all trained in one live pass.

    The model is a random GPT-2 that is made for it. A step of all SAEs should take no longer than
    1.5 times the plain forward passes over its rows, and the SAEs' own steps. The defaults take two
    minutes: GPT-2 small's sizes on CUDA, a small model elsewhere.

        saelab bench live
        saelab bench live --layers 4 --d-sae 8192 --json live.json
    """

    layers: Annotated[int | None, Heading("Model")] = Field(default=None, gt=0)
    """Layers of the model; default: 12 on CUDA, 2 elsewhere."""
    d_model: int | None = Field(default=None, gt=0)
    """Width of the model, a multiple of 64; default: 768 on CUDA, 128 elsewhere."""
    vocabulary: int | None = Field(default=None, gt=2)
    """Tokens of the vocabulary; default: 50257 on CUDA, 5000 elsewhere."""
    context_length: int = Field(default=128, gt=1)
    """Positions per context."""
    d_sae: Annotated[int | None, Heading("SAEs")] = Field(default=None, gt=0, le=MAX_D_SAE)
    """Latents of each; default: 24576 on CUDA, 1024 elsewhere."""
    k: int = Field(default=32, gt=0)
    """Active latents per token."""
    batch_size: int | None = Field(default=None, gt=0)
    """Tokens per step; default: 8192 on CUDA, 1024 elsewhere."""
    steps: int | None = Field(default=None, gt=0, multiple_of=8)
    """Timed steps, after as many that are not, a multiple of 8; default: 200 on CUDA, 16
    elsewhere."""
    directory: Annotated[Path, Heading("Output")] = Path()
    """A directory on the disk to use; a temporary directory is made in it."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    json_: Annotated[Path | None, Metavar("FILE")] = None
    """Also write the figures to this file, as JSON."""


DEFAULTS = {
    "layers": (2, 12),
    "d_model": (128, 768),
    "vocabulary": (5000, 50257),
    "d_sae": (1024, 24576),
    "batch_size": (1024, 8192),
    "steps": (16, 200),
}
"""On the CPU, and on CUDA."""


def live(args: LiveArguments) -> int:
    """Measure, and print the step beside what it is made of."""
    if args.json_ is not None:
        check_file(args.json_, "--json")
    check_writable(args.directory, "--directory")
    from saelab.bench.live import LiveSize, measure_live
    from saelab.lm.load import resolve_device

    device = resolve_device(args.device)
    own = sizes(args, DEFAULTS, device)
    size = LiveSize(
        n_layers=own["layers"],
        d_model=own["d_model"],
        d_vocab=own["vocabulary"],
        length=args.context_length,
        d_sae=own["d_sae"],
        k=args.k,
        batch_size=own["batch_size"],
        steps=own["steps"],
    )
    with tempfile.TemporaryDirectory(prefix="saelab-bench-", dir=args.directory) as directory:
        times = measure_live(size, device, Path(directory))
    print(f"{'a step, ms':<34} {'':>9}")
    for name, seconds in (
        (f"{times.n} SAEs, live", times.live),
        ("plain forward passes", times.passes),
        (f"their steps alone ({times.way})", times.steps),
    ):
        print(f"{name:<34} {1e3 * seconds:>9.3g}")
    print(f"\nlive / (1.5 passes + steps): {times.ratio:.2f}")
    values = {"benchmark": "live", "device": str(device), "setting": asdict(size)}
    values |= {"times": asdict(times) | {"ratio": times.ratio}, "provenance": provenance()}
    write_json(args.json_, values)
    return 0

"""`saelab bench road`: the time of every stage, from a model to features, beside its floor."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from saelab.cli.bench_step import write_json
from saelab.cli.options import Metavar
from saelab.config import Config, Heading
from saelab.files import check_file, check_writable

if TYPE_CHECKING:
    from saelab.bench.road import RoadStage
    from saelab.lm.protocol import LanguageModel
    from saelab.training.run import Run


class RoadArguments(Config):
    """Measure every stage of the road on this machine, on a random GPT-2 that is made for it.

    Harvesting, training, evaluating and collecting features run as their verbs do, each beside what
    it cannot do without: the forward passes, or the steps alone. `saelab plan --rates FILE` plans
    larger work by what this has measured.

        saelab bench road --json road.json

    A smaller model, in a minute on 2 CPU cores:

        saelab bench road --layers 4 --d-model 256 --vocabulary 5000 --d-sae 2048 --json road.json
    """

    layers: Annotated[int, Heading("Model")] = Field(default=12, gt=1)
    """Layers of the model."""
    d_model: int = Field(default=768, gt=0)
    """Width of the model, a multiple of 64."""
    vocabulary: int = Field(default=50257, gt=2)
    """Tokens of the vocabulary."""
    context_length: int = Field(default=128, gt=1)
    """Positions per context."""
    variant: Annotated[str, Heading("SAE")] = "topk"
    """The variant; `saelab train --help` lists them."""
    d_sae: int | None = Field(default=None, gt=0)
    """Latents; default: 32768 on CUDA, 8192 elsewhere."""
    k: int = Field(default=32, gt=0)
    """Active latents per token."""
    batch_size: int | None = Field(default=None, gt=0)
    """Tokens per step; default: 8192 on CUDA, 2048 elsewhere."""
    n_tokens: Annotated[int | None, Heading("Text")] = Field(default=None, gt=0)
    """Tokens that are recorded; default: 2,000,000 on CUDA, 30,000 elsewhere."""
    epochs: int = Field(default=1, gt=0)
    """How often the SAE trains on them."""
    n_eval_tokens: int | None = Field(default=None, gt=0)
    """Tokens that evaluate reads; default: 50,000 on CUDA, 4,000 elsewhere."""
    n_feature_tokens: int | None = Field(default=None, gt=0)
    """Tokens that features reads; default: 200,000 on CUDA, 8,000 elsewhere."""
    directory: Annotated[Path, Heading("Output")] = Path()
    """A directory on the disk to use; a temporary directory is made in it."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    json_: Annotated[Path | None, Metavar("FILE")] = None
    """Also write the figures to this file, as JSON."""


DEFAULTS = {
    "d_sae": (8192, 32768),
    "batch_size": (2048, 8192),
    "n_tokens": (30_000, 2_000_000),
    "n_eval_tokens": (4_000, 50_000),
    "n_feature_tokens": (8_000, 200_000),
}
"""On the CPU, and on CUDA."""


def travel(args: RoadArguments) -> int:
    """Measure all stages, and print each beside its floor."""
    if args.json_ is not None:
        check_file(args.json_, "--json")
    check_writable(args.directory, "--directory")
    from saelab.bench.road import Road, RoadSize
    from saelab.console import say
    from saelab.lm.load import resolve_device

    device = resolve_device(args.device)
    chosen = {
        key: getattr(args, key) or both[device.type == "cuda"] for key, both in DEFAULTS.items()
    }
    size = RoadSize(
        args.layers,
        args.d_model,
        args.vocabulary,
        args.context_length,
        args.variant,
        k=args.k,
        epochs=args.epochs,
        d_sae=chosen["d_sae"],
        batch_size=chosen["batch_size"],
        n_tokens=chosen["n_tokens"],
        n_evaluated=chosen["n_eval_tokens"],
        n_features=chosen["n_feature_tokens"],
    )
    stages: list[RoadStage] = []
    with tempfile.TemporaryDirectory(prefix="saelab-bench-", dir=args.directory) as directory:
        road = Road(size, device, Path(directory), _collect)
        for stage in road.travel():
            stages.append(stage)
            say(_line(stage))
        values = road.values(stages)
    _print(stages)
    write_json(args.json_, values)
    return 0


def _collect(run: "Run", lm: "LanguageModel", n_tokens: int) -> None:
    from saelab.analysis.features import FeatureOptions, collect_features

    collect_features(run, lm, FeatureOptions(n_tokens=n_tokens))


def _line(stage: "RoadStage") -> str:
    return f"{stage.name} {stage.seconds:.3g} s"


def _print(stages: "list[RoadStage]") -> None:
    from saelab.console import si

    print(f"{'stage':<10} {'tokens':>8} {'seconds':>8} {'floor':>8} {'ratio':>6} {'tokens/s':>9}")
    for s in stages:
        floor, ratio = ("-", "-") if s.floor is None else (f"{s.floor:.3g}", f"{s.ratio:.2f}")
        speed = si(s.tokens / s.seconds) if s.tokens else "-"
        line = f"{s.name:<10} {s.tokens:>8} {s.seconds:>8.3g} {floor:>8} {ratio:>6} {speed:>9}"
        print(f"{line}  {s.of}".rstrip())

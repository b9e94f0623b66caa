"""`saelab bench road`: the time of every stage, from a model to features, beside its floor."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from saelab.cli.bench_step import write_json
from saelab.cli.options import Metavar
from saelab.config import MAX_D_SAE, Config, Heading
from saelab.files import check_file, check_writable

if TYPE_CHECKING:
    import torch

    from saelab.bench.road import RoadStage
    from saelab.lm.protocol import LanguageModel
    from saelab.training.run import Run

FEW = 8
"""Tokens of the shortest stage: it is measured with a quarter of them too."""


class RoadArguments(Config):
    """Measure every stage of the road on this machine, on a random GPT-2 that is made for it.

    Harvesting, training, evaluating and collecting features run as their verbs do, each beside what
    it cannot do without: the forward passes, or the steps alone. The defaults take two minutes:
    GPT-2 small's sizes on CUDA, a small model elsewhere. `saelab plan --rates FILE` plans larger
    work by what this has measured.

        saelab bench road --json road.json
    """

    layers: Annotated[int | None, Heading("Model")] = Field(default=None, gt=1)
    """Layers of the model; default: 12 on CUDA, 4 elsewhere."""
    d_model: int | None = Field(default=None, gt=0)
    """Width of the model, a multiple of 64; default: 768 on CUDA, 256 elsewhere."""
    vocabulary: int | None = Field(default=None, gt=2)
    """Tokens of the vocabulary; default: 50257 on CUDA, 5000 elsewhere."""
    context_length: int = Field(default=128, gt=1)
    """Positions per context."""
    variant: Annotated[str, Heading("SAE")] = "topk"
    """The variant; `saelab train --help` lists them."""
    d_sae: int | None = Field(default=None, gt=0, le=MAX_D_SAE)
    """Latents; default: 32768 on CUDA, 2048 elsewhere."""
    k: int = Field(default=32, gt=0)
    """Active latents per token."""
    batch_size: int | None = Field(default=None, gt=0)
    """Tokens per step; default: 8192 on CUDA, 2048 elsewhere."""
    n_tokens: Annotated[int | None, Heading("Text")] = Field(default=None, gt=FEW)
    """Tokens that are recorded; default: 2,000,000 on CUDA, 32,000 elsewhere."""
    n_train_tokens: int | None = Field(default=None, gt=FEW)
    """Tokens that the SAE trains on; default: 20,000,000 on CUDA, 64,000 elsewhere."""
    n_eval_tokens: int | None = Field(default=None, gt=FEW)
    """Tokens that evaluate reads; default: 64,000 on CUDA, 16,000 elsewhere."""
    n_feature_tokens: int | None = Field(default=None, gt=FEW)
    """Tokens that features reads; default: 400,000 on CUDA, 16,000 elsewhere."""
    directory: Annotated[Path, Heading("Output")] = Path()
    """A directory on the disk to use; a temporary directory is made in it."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    json_: Annotated[Path | None, Metavar("FILE")] = None
    """Also write the figures to this file, as JSON."""


DEFAULTS = {
    "layers": (4, 12),
    "d_model": (256, 768),
    "vocabulary": (5000, 50257),
    "d_sae": (2048, 32768),
    "batch_size": (2048, 8192),
    "n_tokens": (32_000, 2_000_000),
    "n_train_tokens": (64_000, 20_000_000),
    "n_eval_tokens": (16_000, 64_000),
    "n_feature_tokens": (16_000, 400_000),
}
"""On the CPU, and on CUDA."""


def sizes(
    args: Config, defaults: Mapping[str, tuple[int, int]], device: "torch.device"
) -> dict[str, int]:
    """The options that were given, and for others the default for this kind of device."""
    cuda = device.type == "cuda"
    return {key: getattr(args, key) or both[cuda] for key, both in defaults.items()}


def travel(args: RoadArguments) -> int:
    """Measure all stages, and print each beside its floor."""
    if args.json_ is not None:
        check_file(args.json_, "--json")
    check_writable(args.directory, "--directory")
    from saelab.bench.road import Road, RoadSize
    from saelab.console import say
    from saelab.lm.load import resolve_device

    device = resolve_device(args.device)
    own = sizes(args, DEFAULTS, device)
    size = RoadSize(
        n_layers=own["layers"],
        d_model=own["d_model"],
        d_vocab=own["vocabulary"],
        length=args.context_length,
        variant=args.variant,
        d_sae=own["d_sae"],
        k=args.k,
        batch_size=own["batch_size"],
        n_tokens=own["n_tokens"],
        n_trained=own["n_train_tokens"],
        n_evaluated=own["n_eval_tokens"],
        n_features=own["n_feature_tokens"],
    )
    stages: list[RoadStage] = []
    with tempfile.TemporaryDirectory(prefix="saelab-bench-", dir=args.directory) as directory:
        road = Road(size, device, Path(directory), _collect)
        for stage in road.travel():
            stages.append(stage)
            say(f"{stage.name} {stage.seconds:.3g} s")
        values = road.values(stages)
    _print(stages)
    write_json(args.json_, values)
    return 0


def _collect(run: "Run", lm: "LanguageModel", n_tokens: int) -> int:
    from saelab.analysis.features import FeatureOptions, collect_features

    found = collect_features(run, lm, FeatureOptions(n_tokens=n_tokens))
    return found.file.facts["n_tokens"]


def _print(stages: "list[RoadStage]") -> None:
    from saelab.console import si

    print(
        f"{'stage':<9} {'tokens':>9} {'seconds':>8} {'fixed':>7} {'floor':>8} {'ratio':>6}"
        f" {'tokens/s':>9}"
    )
    for s in stages:
        floor, ratio = ("-", "-") if s.floor is None else (f"{s.floor:.3g}", f"{s.ratio:.2f}")
        speed = si(s.tokens / s.seconds) if s.tokens else "-"
        line = f"{s.name:<9} {s.tokens:>9} {s.seconds:>8.3g} {s.fixed:>7.2g} {floor:>8} {ratio:>6}"
        print(f"{line} {speed:>9}  {s.of}".rstrip())
    print("\nfixed: what a stage takes for no token. ratio: seconds over the floor.")

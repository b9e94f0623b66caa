"""`saelab train`: train a sparse autoencoder."""

from pathlib import Path
from typing import Annotated, Any, Literal, Union

import pydantic
import tyro
from pydantic import Field

from saelab.cli.parse import parse
from saelab.config import Config
from saelab.sae.variants import variants
from saelab.training.config import TrainConfig
from saelab.training.loop import train, train_many
from saelab.training.sweep import read_sweep

DESCRIPTION = """\
Train a sparse autoencoder on recorded activations. VARIANT says which kind; `saelab train VARIANT
--help` lists its options with the values of its paper. Running the same command again continues an
interrupted run. With --target-site it is a transcoder, which reconstructs another site of the store
than it reads. `saelab train sweep FILE --out DIR` trains many from one file; `saelab train sweep
--help` shows its form. Example: saelab train topk --activations activations_cache/tiny --site
blocks.2.hook_resid_post --d-sae 1024 --k 12 --n-tokens 4000000 --out runs/topk"""


def _subcommand(cls: type[Any]) -> Any:  # noqa: ANN401 - an annotation made at run time
    """The variant's options as a subcommand of its name, which then is no option itself."""
    tag = cls.model_fields["variant"].default
    hidden = Annotated[Literal[tag], tyro.conf.Suppress]
    fields: dict[str, Any] = {"variant": (hidden, tag)}
    options = pydantic.create_model(cls.__name__, __base__=cls, **fields)
    return Annotated[options, tyro.conf.subcommand(tag, description=cls.__doc__)]


def _arguments() -> type[Any]:
    """TrainConfig with one subcommand per variant, and the options of this process."""
    fields: dict[str, Any] = {
        "sae": (Union[tuple(map(_subcommand, variants().values()))], ...),  # noqa: UP007
        "out": (Path, Field(description="The run's directory, by custom runs/NAME.")),
        "device": (str, Field("auto", description="cpu, cuda, ...; auto takes a GPU if any.")),
    }
    return pydantic.create_model("TrainArguments", __base__=TrainConfig, **fields)


class SweepArguments(Config):
    """Train every SAE of a sweep file; those on the same rows share one read of the store.

    The file is JSON: {"base": {options}, "grid": {"sae.k": [8, 16], "seed": [0, 1]}, "runs":
    {"name": {options}}}. Each combination of the grid and each entry of runs is a run in --out.
    Options are those of `saelab train VARIANT --help` with underscores; an SAE's own are below
    "sae", beside its "variant". Give all seeds one "data_seed" to let them share a read. Running
    the same command again continues what is missing.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The sweep file."""
    out: Path
    """The directory of the runs."""
    device: str = "auto"
    """Where to train: cpu, cuda, ...; auto takes a GPU if any."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    if arguments[:1] == ["sweep"]:
        sweep = parse(SweepArguments, "train sweep", arguments[1:])
        configs = {sweep.out / name: c for name, c in read_sweep(sweep.file).items()}
        runs = train_many(configs, device=sweep.device)
    else:
        args = parse(_arguments(), "train", arguments, DESCRIPTION)
        config = TrainConfig.model_validate(args.model_dump(exclude={"out", "device"}))
        runs = [train(config, out=args.out, device=args.device)]
    for run in runs:
        last = run.metrics()[-1]
        figures = f"FVU {last['fvu']:.4f}, L0 {last['l0']:.1f}, dead {last['dead']:.0f}"
        print(figures if len(runs) == 1 else f"{run.name:<32} {figures}")
    print(runs[0].path if len(runs) == 1 else runs[0].path.parent)
    return 0

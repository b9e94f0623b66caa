"""`saelab train`: train a sparse autoencoder."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import pydantic
import tyro
from pydantic import Field

from saelab.cli.parse import parse
from saelab.sae.variants import VARIANTS
from saelab.training.config import TrainConfig
from saelab.training.loop import train

DESCRIPTION = """\
Train a sparse autoencoder on recorded activations. VARIANT says which kind; `saelab train VARIANT
--help` lists its options with the values of its paper. Running the same command again continues an
interrupted run. Example: saelab train topk --activations activations_cache/tiny --site
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
        "sae": (Union[tuple(_subcommand(cls) for cls in VARIANTS)], ...),  # noqa: UP007
        "out": (Path, Field(description="The run's directory, by custom runs/NAME.")),
        "device": (str, Field("auto", description="cpu, cuda, ...; auto takes a GPU if any.")),
    }
    return pydantic.create_model("TrainArguments", __base__=TrainConfig, **fields)


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(_arguments(), "train", arguments, DESCRIPTION)
    values = args.model_dump(exclude={"out", "device"})
    config = TrainConfig.model_validate(values)
    run = train(config, out=args.out, device=args.device)
    last = run.metrics()[-1]
    print(f"FVU {last['fvu']:.4f}, L0 {last['l0']:.1f}, dead {last['dead']:.0f}", file=sys.stdout)
    print(run.path)
    return 0

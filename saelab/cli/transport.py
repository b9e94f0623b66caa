"""`saelab transport`: which latents an earlier site carries, and which are computed between."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from saelab.analysis.transport.options import TransportOptions
from saelab.cli.parse import parse
from saelab.config import Heading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saelab.analysis.transport.records import SiteTransport


class TransportArguments(TransportOptions):
    """Say which latents of a run are carried from an earlier site, and which are computed between.

    It fits affine maps of every rank from the activations at --from to those at --to, at the same
    token (arXiv 2508.17540), and predicts each document by maps fitted on other documents. R² of a
    latent says how much of what its direction reads on the tokens where it fires is predicted: near
    1 it is carried, near 0 or below it is computed between the sites. Beside it stand the unchanged
    activation (identity), the mean, random directions and other latents, on the same tokens.
    Efficiency compares each map with the most that any map of its rank can explain. The live model
    then runs on transported activations.

    Writes a file for each pair of sites into transport/ of the run; `saelab browse` shows them. A
    pair that is there already is not measured again.

        saelab transport --run runs/topk --from blocks.1.hook_resid_post
        saelab transport --run runs/topk --activations activations_cache/tiny
            --from blocks.0.hook_resid_post blocks.1.hook_resid_post --rank 1 8 64
    """

    run: Annotated[Path, Heading("Input")] = Field()
    """The run's directory."""
    activations: Path | None = None
    """The store with the sites; default: the one that the run was trained on."""
    limit: Annotated[float, Heading("Output")] = Field(default=0.5, allow_inf_nan=False)
    """R² that separates carried from computed latents in what is printed."""
    top: int = Field(default=8, gt=0)
    """Number of latents to print of either kind."""
    model: Annotated[str | None, Heading("Machine")] = None
    """The language model; default: the one that the run was trained on."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    json_: Annotated[bool, Heading("Output")] = False
    """Print JSON instead of tables."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(TransportArguments, "transport", arguments)
    # Imported here, so that --help does not wait for torch.
    from saelab.activations.store import ActivationStore
    from saelab.analysis.transport.measure import measure_transport
    from saelab.cli.transport_tables import print_transport
    from saelab.lm.load import load_recorded_model
    from saelab.training.run import Run

    run = Run(args.run)
    run.check_finished()
    store = ActivationStore(args.activations or run.store_path())
    lm = None
    if args.model is not None:
        lm = load_recorded_model(run.model(), name=args.model, device=args.device)
    options = TransportOptions(**args.model_dump(include=set(TransportOptions.model_fields)))
    found = measure_transport(run, options, store=store, lm=lm, device=args.device)
    if args.json_:
        print(json.dumps(_values(found, args.limit), indent=2, allow_nan=False))
        return 0
    print_transport(found, limit=args.limit, top=args.top)
    for one in found:
        print(one.path)
    return 0


def _values(found: "Sequence[SiteTransport]", limit: float) -> list[dict[str, object]]:
    return [
        {
            "path": str(one.path),
            "summary": one.summary(limit),
            "latents": [one.record(latent, limit) for latent in range(len(one))],
        }
        for one in found
    ]

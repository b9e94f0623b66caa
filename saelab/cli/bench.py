"""`saelab bench`: how close saelab comes to what this machine can do."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import Field

from saelab.cli.parse import parse
from saelab.config import Config

if TYPE_CHECKING:
    from saelab.activations.benchmark import Comparison


class BenchArguments(Config):
    """Measure the activation store against this machine's limits, in turns in one process.

    Harvesting is compared with the forward passes alone, writing with a plain write and fsync,
    reading with a plain sequential read. Set OMP_NUM_THREADS on a busy machine.
    """

    what: Annotated[Literal["store"], tyro.conf.Positional] = "store"
    """What to measure."""
    directory: Path = Path()
    """On which disk: a temporary directory is made there."""
    mib: int = Field(default=512, gt=0)
    """Size of the store that is written and read."""
    d_in: int = Field(default=768, gt=0)
    """Width of its rows."""
    batch_size: int = Field(default=4096, gt=0)
    """Rows of a batch."""
    rounds: int = Field(default=4, gt=0)
    """How often each is measured; the best counts."""
    model: str = "tiny"
    """Whose harvest is measured, on the shipped grammar if it is tiny, else on --text."""
    sites: Annotated[tuple[str, ...], tyro.conf.arg(metavar="HOOK [HOOK ...]")] = (
        "blocks.2.hook_resid_post",
    )
    """The sites of the harvest."""
    text: str = "tiny"
    """The text of the harvest; see `saelab harvest --help`."""
    n_tokens: int = Field(default=100_000, gt=0)
    """Tokens of the harvest."""
    contexts: int = Field(default=32, gt=0)
    """Contexts of a forward pass."""
    device: str = "auto"
    """Where the model runs and the batches go."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(BenchArguments, "bench", arguments)
    with tempfile.TemporaryDirectory(prefix="saelab-bench-", dir=args.directory) as directory:
        results = _measure(args, Path(directory))
    if args.json_:
        values = [{**vars(result), "ratio": result.ratio} for result in results]
        print(json.dumps(values, indent=2))
        return 0
    from saelab.console import si

    print(f"{'':<26} {'saelab':>12} {'limit':>12}   {'':<9} {'ratio':>6} {'goal':>6}")
    for r in results:
        speeds = f"{si(r.ours):>12} {si(r.limit):>12}   {r.unit + '/s':<9}"
        print(f"{r.name:<26} {speeds} {r.ratio:>6.2f} {r.goal:>6.2f}")
    return 0


def _measure(args: BenchArguments, directory: Path) -> "list[Comparison]":
    from saelab.activations.benchmark import compare_harvest, compare_reading, compare_writing
    from saelab.activations.corpus import load_corpus
    from saelab.activations.harvest import HarvestOptions
    from saelab.lm.hf import load_hugging_face_model
    from saelab.lm.load import resolve_device

    rows = max(args.batch_size, args.mib * 2**20 // (2 * args.d_in))
    written = compare_writing(
        directory, rows=rows, d_in=args.d_in, dtype="bfloat16", rounds=args.rounds
    )
    read = [
        compare_reading(
            directory / "written",
            batch_size=args.batch_size,
            rounds=args.rounds,
            cold=cold,
            device=resolve_device(args.device),
        )
        for cold in (True, False)
    ]
    lm = load_hugging_face_model(args.model, device=args.device)
    corpus = load_corpus(args.text, lm)
    options = HarvestOptions(n_tokens=args.n_tokens, batch_size=args.contexts)
    harvested = compare_harvest(
        lm, args.sites, corpus, directory, options=options, rounds=args.rounds
    )
    return [harvested, written, *read]

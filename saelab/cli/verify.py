"""`saelab verify`: check an activation store or a run byte by byte."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, UsageError


class VerifyArguments(Config):
    """Check every byte of an activation store, of a run, or of a set of runs.

    Names each damaged file, and exits with 1 if there is one. In a run, all files that saelab
    writes are checked, and that they belong to one SAE: the weights match the configuration, and
    features, scores and evaluations were made with these weights; the store is the one that the run
    was trained on. Files of earlier versions have no checksum: they are checked as far as possible,
    and named.

    With --reforward N, the model also runs on N random contexts of a store, and the stored
    activations are compared with the fresh ones: a checksum cannot detect wrong activations.

        saelab verify activations_cache/tiny --reforward 20
        saelab verify runs/demo/topk-residual
    """

    path: Annotated[Path, Positional("PATH")]
    """The directory of the store, of the run, or of the set."""
    reforward: int = Field(default=0, ge=0)
    """Number of contexts of a store to run through the model again."""
    model: str | None = None
    """The model to run; default: the one that was harvested."""
    device: str = "auto"
    """Device of the model: cpu, cuda, ...; auto takes the GPU if there is one."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    from saelab.training.run_paths import is_run
    from saelab.training.sets import is_set

    args = parse(VerifyArguments, "verify", arguments)
    if is_run(args.path) or is_set(args.path):
        return _run(args)
    from saelab.activations.verify import verify

    damages = verify(args.path)
    for damage in damages:
        print(f"{damage.file}: {damage.problem}")
    agrees = bool(damages) or not args.reforward or _reforward(args)
    print("damaged" if damages else "whole" if agrees else "not what the model says")
    print(args.path)
    return 1 if damages or not agrees else 0


def _run(args: VerifyArguments) -> int:
    """Print what is wrong with a run or a set; 1 if anything is, else 0."""
    if args.reforward:
        raise UsageError(f"{args.path} is no store, which --reforward checks; leave it out.")
    from saelab.analysis.verify_run import verify_run
    from saelab.analysis.verify_set import verify_set
    from saelab.training.sets import is_set

    found = verify_set(args.path) if is_set(args.path) else verify_run(args.path)
    for damage in found.damages:
        print(f"{damage.file}: {damage.problem}")
    for note in found.notes:
        print(note)
    if found.unsealed:
        print(f"without a checksum, from an earlier version: {', '.join(found.unsealed)}")
    print("damaged" if found.damages else f"whole: {found.n_files} files")
    print(args.path)
    return 1 if found.damages else 0


def _reforward(args: VerifyArguments) -> bool:
    """Print the comparison of every site; returns whether all agree."""
    from saelab.activations.reforward import reforward
    from saelab.activations.store import ActivationStore
    from saelab.lm.load import load_recorded_model

    store = ActivationStore(args.path)
    model = store.manifest.model
    if model is None:
        raise UsageError(f"{args.path} was made from arrays; there is no model to run again.")
    lm = load_recorded_model(model, name=args.model, device=args.device)
    results = reforward(store, lm, args.reforward)
    for result in results:
        word = "agrees" if result.agrees else "DIFFERS"
        print(
            f"{result.site}: {result.rows} rows {word}, largest difference {result.error:.1e} of "
            f"a row's size (rounding: up to {result.limit:.1e})"
        )
    return all(result.agrees for result in results)

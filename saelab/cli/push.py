"""`saelab push`: give a run to others, on the Hugging Face Hub."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, Heading, UsageError
from saelab.files import check_writable

if TYPE_CHECKING:
    from saelab.analysis.hub.card import CardOptions


class PushArguments(Config):
    """Write a run to a repository on the Hugging Face Hub, with a model card.

    The repository gets the run (saelab/: configuration, provenance, weights, evaluations), the same
    SAE for SAELens, and a card (README.md) with figures, origin, how to load it, and the licence.
    Directories of this machine are left out. A new repository is private, unless --public.

    The token is read from the environment (HF_TOKEN), and written nowhere. What arrives is one
    commit: all of it or nothing.

        saelab push runs/topk owner/topk --license apache-2.0
        saelab push runs/topk owner/topk --dry-run --out folder
    """

    run: Annotated[Path, Positional("RUN")]
    """The run's directory."""
    repo: Annotated[str, Positional("REPO")]
    """The repository, owner/name."""
    license: str | None = None
    """The SAE's licence by the hub's name for it, e.g. apache-2.0; default: that of the release it
    was imported from, else the card says that it is unknown."""
    base_model: str | None = None
    """The language model's owner/name on the hub; default: the run's model, if it has such a
    name."""
    public: Annotated[bool, Heading("The repository")] = False
    """Make a new repository public. That of an old one stays as it is."""
    replace: bool = False
    """Commit over the files of a repository that has some; earlier versions stay in its history."""
    dry_run: Annotated[bool, Heading("Without the hub")] = False
    """Send nothing; write the folder to --out, which must be given."""
    out: Path | None = None
    """A new directory for the folder; without --dry-run the default is a temporary one."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(PushArguments, "push", arguments)
    if args.dry_run and args.out is None:
        raise UsageError("--dry-run writes the folder to --out; name a new directory there.")
    if args.out is not None:
        check_writable(args.out, "--out")
    # Imported here, so that --help does not wait for torch.
    from saelab.analysis.hub.card import CardOptions

    options = CardOptions(args.repo, args.license, args.base_model)
    options.check()
    if args.out is not None:
        return _push(args, options, args.out)
    with tempfile.TemporaryDirectory(prefix="saelab-push-") as folder:
        return _push(args, options, Path(folder))


def _push(args: PushArguments, options: "CardOptions", folder: Path) -> int:
    from saelab.analysis.hub.folder import write_folder
    from saelab.clients.hub import hub_client
    from saelab.clients.upload import check_token, push
    from saelab.console import in_bytes, note
    from saelab.training.run import Run

    run = Run(args.run)
    if not args.dry_run:
        hub_client()
        check_token()
    files = write_folder(run, folder, options)
    if "license: unknown" in (folder / "README.md").read_text().splitlines():
        note("The card says that the licence is unknown; --license states one.")
    if args.dry_run:
        for name, path in files.items():
            print(f"{in_bytes(path.stat().st_size):>8}  {name}")
        print(folder)
        return 0
    message = f"Upload {run.name} with saelab"
    done = push(files, args.repo, message=message, private=not args.public, replace=args.replace)
    if done.created:
        print(f"a new repository, {'public' if args.public else 'private'}")
    print(f"commit {done.commit}")
    print(done.url)
    return 0

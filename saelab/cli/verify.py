"""`saelab verify`: check an activation store byte by byte."""

from pathlib import Path
from typing import Annotated

import tyro

from saelab.cli.parse import parse
from saelab.config import Config


class VerifyArguments(Config):
    """Check that every byte of an activation store is as it was written.

    Names each damaged file; exits with 1 if there is any.
    """

    path: Annotated[Path, tyro.conf.Positional]
    """The store's directory."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(VerifyArguments, "verify", arguments)
    from saelab.activations.verify import verify

    damages = verify(args.path)
    for damage in damages:
        print(f"{damage.file}: {damage.problem}")
    print("damaged" if damages else "whole")
    print(args.path)
    return 1 if damages else 0

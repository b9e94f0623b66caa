"""Command lines from functions and configurations, by tyro."""

from collections.abc import Callable
from typing import Any, TypeVar

import tyro

Result = TypeVar("Result")


def parse(
    target: Callable[..., Result], verb: str, arguments: list[str], description: str | None = None
) -> Result:
    """Call `target` (a function or a configuration class) with the parsed arguments.

    `--help` is made of the target's docstring and its fields'; bad arguments exit with 2.
    """
    markers: tuple[Any, ...] = (
        tyro.conf.OmitArgPrefixes,
        tyro.conf.OmitSubcommandPrefixes,
        tyro.conf.CascadeSubcommandArgs,
        tyro.conf.FlagCreatePairsOff,
    )
    return tyro.cli(
        target,
        prog=f"saelab {verb}",
        args=arguments,
        description=description,
        config=markers,
    )

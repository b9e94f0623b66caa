"""`saelab doctor`: whether this machine has what the verbs need."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import Annotated

from saelab.cli.gpus import find_gpus, told
from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.cli.requirements import Requirement, requirements
from saelab.config import Config, UsageError
from saelab.files import check_writable

LEAST_DISK, LEAST_MEMORY = 2**30, 2**31
"""Bytes below which not even the demo runs."""
NOT_ASKED = ("test", "dev", "docs")
"""Extras of those who work on saelab."""
LARGE = ("saelab", "torch", "transformers", "transformer_lens")
"""Packages that would take seconds to compile at each start."""


@dataclass(frozen=True)
class VerbNeeds:
    """Packages that some verbs need beside those that all need.

    Attributes:
        title: what they are for.
        packages: their names.
        extra: the extra that brings them.
        verbs: the verbs that need them, or do more with them; with spaces between.
    """

    title: str
    packages: tuple[str, ...]
    extra: str
    verbs: str


PARTS = (
    VerbNeeds(
        "stores and features",
        ("h5py", "einops"),
        "train",
        "harvest train evaluate features names diff show verify transport bench import push export",
    ),
    VerbNeeds(
        "language models",
        ("transformer-lens", "transformers", "tokenizers"),
        "lm",
        "demo harvest evaluate tasks features explain steer transport diff circuit check bench "
        "claims",
    ),
    VerbNeeds("the app", ("streamlit", "plotly"), "app", "browse publish"),
    VerbNeeds("files of the hub", ("huggingface_hub", "datasets"), "hub", "import push harvest"),
    VerbNeeds("a server that explains", ("openai",), "explain", "explain"),
    VerbNeeds("kernels on a GPU", ("triton",), "kernels", "train"),
)
"""Which verbs need what, the most used first. Other verbs need no more than the core."""


class DoctorArguments(Config):
    """Say what is installed, what this machine has, and which verbs lack something.

    Exit code 1: something is broken: a package that every verb needs is missing, a version does not
    fit, torch does not see a GPU that is there, or disk or memory is nearly full. What only some
    verbs need may be missing: it is named, with the command that installs it. So is what makes
    every start slow.

        saelab doctor
    """

    path: Annotated[Path, Positional("PATH")] = Path()
    """Where results are to be written, for the free disk."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(DoctorArguments, "doctor", arguments)
    found = [one for one in requirements() if one.extra not in NOT_ASKED]
    broken = [*_packages(found), *_devices(), *_room(args.path)]
    missing = _missing({one.package.lower() for one in found if one.version is not None})
    slow = [f"slow: {why}" for why in [slow_start()] if why is not None]
    print()
    for line in [*(f"broken: {each}" for each in broken), *slow, *missing]:
        print(line)
    if not (broken or slow or missing):
        print("Everything that the verbs need is here.")
    return 1 if broken else 0


def _packages(found: list[Requirement]) -> Iterator[str]:
    """Print what is installed; what of it is broken."""
    if not found:
        print("saelab runs from its source, so its requirements are not known.")
    for one in {one.package: one for one in found}.values():
        print(f"{one.package:<20} {one.version or '-':<16} {one.bounds}")
        if one.version is None and not one.extra:
            yield f"{one.package} is missing, which every verb needs: pip install {one.package}."
        if one.version is not None and not one.fits:
            yield (
                f"{one.package} {one.version} is installed, and saelab needs {one.bounds}: "
                f"pip install '{one.package}{one.bounds}'."
            )


def _devices() -> Iterator[str]:
    """Print the devices; what torch cannot use of them."""
    from saelab.console import in_bytes

    gpus = find_gpus()
    print(f"\n{'GPU':<20} {told(gpus) if gpus else 'none'}")
    for number, gpu in enumerate(gpus):
        print(
            f"{f'  memory of GPU {number}':<20} {in_bytes(gpu.free)} of {in_bytes(gpu.total)} free"
        )
    try:
        import torch
    except ImportError as error:
        yield f"torch cannot be imported: {error}."
        return
    built, seen = torch.version.cuda, torch.cuda.device_count()
    print(f"{'torch':<20} {torch.__version__}, {f'CUDA {built}' if built else 'without CUDA'}")
    if gpus and not seen:
        why = "is built without CUDA" if built is None else "finds no usable driver"
        yield f"there is a GPU, but torch {torch.__version__} {why}; install torch for this driver."
    if gpus and seen:
        yield from _triton()


def _triton() -> Iterator[str]:
    try:
        import triton
    except ImportError as error:
        if error.name != "triton":
            yield f"triton cannot be imported: {error}."
        return
    print(f"{'Triton':<20} {triton.__version__}")


def _room(path: Path) -> Iterator[str]:
    """Print the free disk and memory; which of them is nearly full."""
    from saelab.console import in_bytes
    from saelab.resources import free_bytes, free_memory

    disk, memory = free_bytes(path), free_memory()
    print(f"{'disk':<20} {in_bytes(disk)} free at {path.absolute()}")
    print(f"{'memory':<20} {in_bytes(memory)} free")
    if disk < LEAST_DISK:
        yield f"{in_bytes(disk)} of disk is free, and the demo needs {in_bytes(LEAST_DISK)}."
    if memory < LEAST_MEMORY:
        yield f"{in_bytes(memory)} of memory is free, and the demo needs {in_bytes(LEAST_MEMORY)}."


def slow_start(packages: Sequence[str] = LARGE) -> str | None:
    """Why each start compiles these packages again, and what to do; None if none does.

    That Python keeps no bytecode is no fault if the installation has made it.
    """
    origins = [spec.origin for name in packages if (spec := find_spec(name)) and spec.origin]
    kept = [Path(cache_from_source(origin)) for origin in origins]
    lacking = [path for path in kept if not path.is_file()]
    start = "each start compiles all sources again, which takes seconds:"
    if lacking and sys.dont_write_bytecode:
        return f"{start} Python may keep no bytecode; unset PYTHONDONTWRITEBYTECODE."
    for place in dict.fromkeys(path.parent for path in lacking):
        try:
            check_writable(place, "bytecode")
        except UsageError:
            remedy = "set PYTHONPYCACHEPREFIX to a directory that stays"
            return f"{start} bytecode cannot be written to {place}; {remedy}."
    return None


def _missing(installed: set[str]) -> list[str]:
    """A line for each part of which a package is missing."""
    return [
        f"not installed, for {part.title}: {', '.join(lacking)} (pip install "
        f"'saelab[{part.extra}]'); verbs: {', '.join(part.verbs.split(' '))}"
        for part in PARTS
        if (lacking := [name for name in part.packages if name.lower() not in installed])
    ]

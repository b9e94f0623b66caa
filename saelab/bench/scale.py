"""How the step of one SAE gets faster, or larger, with more processes."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from saelab.bench.machine import NO_RATES, StepShape
from saelab.bench.step import step_config, time_step
from saelab.config import UsageError
from saelab.console import in_bytes, note
from saelab.formats.json_file import read_object
from saelab.resources import free_on
from saelab.training.plan import alone_bytes
from saelab.training.together import Together

Kind = Literal["strong", "weak"]


@dataclass(frozen=True)
class Scaled:
    """One measurement.

    Attributes:
        kind: strong: the same SAE in more processes; weak: with as many latents and rows in each.
        replicas: of the SAE, which share out the rows of the batch.
        batch: rows of all replicas.
        way: fused or autograd.
        seconds: median duration of a step of all processes.
        peak_bytes: peak of this process's device memory; 0 if unknown.
    """

    kind: Kind
    processes: int
    replicas: int
    d_in: int
    d_sae: int
    k: int
    batch: int
    way: str
    seconds: float
    peak_bytes: int


def measure_own(
    variant: str,
    shape: StepShape,
    together: Together,
    device: torch.device,
    *,
    precision: str,
    steps: int,
) -> list[Scaled]:
    """The strong and the weak measurement in these processes; all call it together.

    What does not fit in a process's free memory is said, and left out.

    Raises:
        UsageError: so many processes cannot train such an SAE together.
    """
    world, count = together.ranks.world, together.replicas.count
    grown = {"d_sae": shape.d_sae * world // count, "batch": shape.batch * count}
    sizes: dict[Kind, StepShape] = {"strong": shape, "weak": replace(shape, **grown)}
    found, left_out = [], []
    for kind, size in sizes.items():
        config = step_config(variant, size, precision=precision)
        alone, d = config.of_rows(count), size.d_in
        needed = alone_bytes(alone, d, d, device, world // count)
        free = free_on(device)
        if not all(says == ["True"] for says in together.all_say([str(needed <= free)])):
            if size not in left_out:  # In one process both are of the same size.
                note(
                    f"{size} in {world} process{'' if world == 1 else 'es'} does not fit: each "
                    f"needs {in_bytes(needed)}, and {in_bytes(free)} is free on {device}."
                )
            left_out.append(size)
            continue
        if device.type == "cuda":
            torch.cuda.empty_cache()  # The memory of another size does not fit this one.
        took = time_step(config, size, NO_RATES, device, steps=steps, together=together)
        facts = (world, count, size.d_in, size.d_sae, size.k, size.batch)
        found.append(Scaled(kind, *facts, took.way, took.seconds, took.peak_bytes))
    return found


def launch(
    counts: Sequence[int], replicas: int, arguments: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """What `saelab bench scale` with these arguments writes in each number of processes.

    Those that so many replicas cannot share out are measured without, to compare.

    Raises:
        UsageError: a launch failed; its own message is printed before.
    """
    for n in counts:
        with tempfile.TemporaryDirectory(prefix="saelab-scale-") as directory:
            out = Path(directory) / "scale.json"
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(n), "-m", "saelab.cli", "bench", "scale"]
            shared = str(replicas if n % replicas == 0 else 1)
            own = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
            done = subprocess.run(
                [*command, *arguments, "--replicas", shared, "--json", str(out)],
                env=own,
                stdout=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode or not out.is_file():
                raise UsageError(
                    f"The launch of {n} processes ended with exit code {done.returncode}; its "
                    "message is above. Give fewer --processes, or smaller --configs."
                )
            yield read_object(out)


def gains(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float | None, float | None]]:
    """For each measurement the speed-up over one process, and the share of the ideal one.

    Weak scaling's work grows with the processes, with their latents and the replicas' rows: its
    speed-up is that of latents times rows per second.
    Both are None if one process was not measured.
    """

    def size(row: Mapping[str, Any]) -> tuple[str, ...]:
        """What one process has to do."""
        m, batch, replicas = row["d_sae"], row["batch"], row.get("replicas", 1)
        if row["kind"] == "weak":
            m, batch = m // (row["processes"] // replicas), batch // replicas
        return (row["kind"], *(str(n) for n in (row["d_in"], m, row["k"], batch)))

    alone = {size(row): row["seconds"] for row in rows if row["processes"] == 1}
    found: list[tuple[float | None, float | None]] = []
    for row in rows:
        n = row["processes"]
        if (before := alone.get(size(row))) is None:
            found.append((None, None))
            continue
        gain = before / row["seconds"] * (n if row["kind"] == "weak" else 1)
        found.append((gain, gain / n))
    return found

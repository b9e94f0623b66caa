"""The plans of docs/planning.md: runs that were measured, and work beyond any machine of ours."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from saelab.bench.costs import Fleet, Work, step_parts, work
from saelab.bench.machine import StepShape
from saelab.bench.pace import MEASURED, Pace, measured, pace_of_kind, pace_of_road
from saelab.bench.ways import by_store, cheapest, ways
from saelab.console import duration, in_bytes
from saelab.lm.shape import ModelShape
from saelab.sae.variants import sized

NINE_B = ModelShape(
    name="a 9B model",
    n_layers=42,
    d_model=3584,
    n_heads=16,
    d_head=256,
    d_vocab=256_000,
    mlp=14336,
    block=8_324_198_400,
    used=8_324_198_400,
    rest=917_507_584,
    context=8192,
)
"""Sizes of Gemma 2 9B, written by hand from its config.json; no file of it is here."""
SITE = "blocks.0.hook_resid_post"
EVERY_LAYER = ("blocks.*.hook_resid_post",)
ONE_LAYER = ("blocks.20.hook_resid_post",)
DISK = 100 * 10**12
"""Bytes of disk that all these machines have for a store: 100 TB."""
BILLION = 10**9
CASES = {
    "every layer, 131,072 latents": (
        EVERY_LAYER,
        131_072,
        [("h200", 1), ("h200", 8), ("h200", 64), ("rtx-4090", 8)],
    ),
    "one layer, 1,048,576 latents": (ONE_LAYER, 1_048_576, [("h100", 1), ("h200", 1), ("h100", 8)]),
    "one layer, 16,777,216 latents": (
        ONE_LAYER,
        16_777_216,
        [("h200", 8), ("h200", 16), ("h200", 64), ("b200", 64)],
    ),
}
HEAD = """\
| SAEs | GPUs | cheapest way | GPU memory | disk or sent | time | GPU hours | longest |
| --- | --- | --- | --: | --: | --: | --: | --- |
"""


def job(sites: tuple[str, ...], d_sae: int) -> Work:
    """TopK SAEs of the 9B model on a billion tokens."""
    sae = sized("topk", d_sae, 64)
    return work(NINE_B, NINE_B.sites(sites), sae, BILLION, batch_size=8192, length=1024)


def planned() -> str:
    """The table, one line a case."""
    lines = []
    for name, (sites, d_sae, machines) in CASES.items():
        for kind, n in machines:
            lines.append(
                _line(name, kind, Fleet(pace_of_kind(kind), n, disk=DISK), job(sites, d_sae))
            )
    return HEAD + "".join(lines)


def _line(name: str, kind: str, fleet: Fleet, one: Work) -> str:
    found = ways(one, fleet)
    best = cheapest(found)
    start = f"| {name} | {fleet.gpus} x {kind} | "
    if best is None:
        said = "; ".join(f"{way.name}: {way.problem}" for way in (found[0], found[-1]))
        return f"{start}none; {said} | | | | | |\n"
    moved = max([best.disk, *best.traffic.values()])
    cells = [
        best.name,
        in_bytes(sum(best.memory.values())),
        in_bytes(moved) if moved else "-",
        duration(best.wall),
        f"{best.gpu_hours:.3g}",
        best.limit,
    ]
    return f"{start}{' | '.join(cells)} |\n"


@dataclass(frozen=True)
class Checked:
    """A stage that was measured, beside its plan, in seconds."""

    stage: str
    of: str
    measured: float
    planned: float

    @property
    def ratio(self) -> float:
        """Planned over measured."""
        return self.planned / self.measured


def checked() -> Iterator[Checked]:
    """TopK steps and trainings of GPUs; then roads, planned by the rates of another size's road."""
    for kind in ("h100", "h200"):
        pace, found = pace_of_kind(kind), measured(f"step-{kind}.json")
        for step in found["steps"]:
            alive = not step["shape"].get("dead")
            if step["variant"] == "topk" and step["way"] == "fused" and alive:
                size = StepShape(**step["shape"])
                parts = pace.step_parts(size, "topk", products=1, fused=True, half=True)
                name = f"{found['device']}, {size.d_in} / {size.d_sae} / {size.k}"
                yield Checked("a step", name, step["seconds"], sum(parts.values()))
        yield from _shared(f"scale-{kind}.json", pace)
    for first in sorted(MEASURED.glob("road-*-1.json")):
        pace = pace_of_road(first, pace_of_kind("h200"))
        for path in sorted(MEASURED.glob(first.name.replace("-1.", "-[2-9]."))):
            yield from _road(measured(path.name), pace)


def _shared(name: str, pace: Pace) -> Iterator[Checked]:
    """Steps of an SAE that several GPUs hold together."""
    if not (MEASURED / name).exists():
        return
    found = measured(name)
    for step in (step for step in found["steps"] if step["processes"] > 1):
        d, m, k, n = (step[key] for key in ("d_in", "d_sae", "k", "processes"))
        shape = ModelShape("", 1, d, 1, d, 2, 4 * d, 1, 1, 1, 1)
        one = work(shape, [SITE], sized("topk", m, k), BILLION, batch_size=step["batch"])
        planned = sum(step_parts(one, Fleet(pace, n), n, 2 * d).values())
        of = f"{found['device']}, {d} / {m} / {k}"
        yield Checked(f"a step of {n} GPUs", of, step["seconds"], planned)


def _road(found: dict[str, Any], pace: Pace) -> Iterator[Checked]:
    size = found["setting"]
    d, layers, vocabulary = size["d_model"], size["n_layers"], size["d_vocab"]
    block = layers * (12 * d * d + 13 * d)  # GPT-2.
    rest = d * (vocabulary + size["length"] + 2)
    shape = ModelShape(
        "", layers, d, d // 64, 64, vocabulary, 4 * d, block, block, rest, size["length"]
    )
    sae = sized(size["variant"], size["d_sae"], size["k"])
    stages = {stage["name"]: stage for stage in found["stages"]}
    of = f"{found['device']}, {layers} layers of {d}, {d} / {size['d_sae']} / {size['k']}"
    for name, part in (
        ("harvest", "forward passes"),
        ("train", "steps"),
        ("evaluate", "evaluate"),
        ("features", "features"),
    ):
        stage = stages[name]
        n = stage["tokens"]
        one = work(
            shape,
            [f"blocks.{layers // 2}.hook_resid_post"],
            sae,
            n,
            batch_size=size["batch_size"],
            length=size["length"],
            half=size["half"],
            n_evaluated=n,
            n_features=n,
        )
        planned = by_store(one, Fleet(pace), 1).seconds[part]
        if part in ("evaluate", "features"):
            planned -= pace.start
        took = stage["seconds"] - (0.0 if part == "features" else stage["fixed"])
        yield Checked(name, of, took, planned)

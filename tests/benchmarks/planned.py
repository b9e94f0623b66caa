"""The plans of docs/planning.md: work beyond any machine that saelab was measured on."""

from saelab.bench.pace import pace_of_kind
from saelab.bench.road_plan import Fleet, Work, work
from saelab.bench.ways import cheapest, ways
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
        return f"{start}none; by a store, {found[0].problem} | | | | | |\n"
    shared = f", {best.shards} GPUs an SAE" if best.shards > 1 else ""
    moved = max([best.disk, *best.traffic.values()])
    cells = [
        best.name + shared,
        in_bytes(sum(best.memory.values())),
        in_bytes(moved) if moved else "-",
        duration(best.wall),
        f"{best.gpu_hours:.3g}",
        best.limit,
    ]
    return f"{start}{' | '.join(cells)} |\n"

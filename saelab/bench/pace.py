"""How fast a machine is on every part of the road: a kind of GPU by name, or a machine measured.

`kinds.json` has the GPUs, by their data sheets; `measured/` has what was measured, with device,
command and date. What neither has is assumed; `Pace.sources` says so.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from saelab.bench.machine import Rates, StepShape
from saelab.config import UsageError
from saelab.formats.json_file import read_object

HERE = Path(__file__).resolve().parent
KINDS, MEASURED = HERE / "kinds.json", HERE / "measured"
USABLE = 0.92
"""Share of a GPU's memory that a training may plan with."""
ROAD = "road"


@dataclass(frozen=True)
class Pace:
    """The rates of one GPU (or CPU), and how far saelab stays from them.

    Attributes:
        memory: bytes of the device.
        rates: of products and copies.
        link, network: bytes per second, one way, to the other GPUs of a host and to other hosts.
        latency: seconds of an exchange without bytes.
        fused: whether the steps of variants with a fused rule are by kernels alone.
        step, autograd: time of a step over `Rates.parts`, fused and by autograd.
        variants: time of a variant's fused step over TopK's, where measured.
        forward: share of `rates.matmul` that a forward pass reaches.
        harvest, train, evaluate: time of each over its passes or its steps alone.
        feature_token, feature_latent: seconds of `features` per token beside the model's, and per
            latent.
        start: seconds until a verb works.
        read: bytes of a store per second and host.
        sources: where the figures come from, as sentences.
    """

    name: str
    memory: float
    rates: Rates
    link: float
    network: float
    latency: float
    fused: bool
    step: float
    autograd: float
    variants: Mapping[str, float]
    forward: float
    harvest: float
    train: float
    evaluate: float
    feature_token: float
    feature_latent: float
    start: float
    read: float
    sources: tuple[str, ...]

    def factor(self, variant: str, *, fused: bool) -> float:
        """Time of this variant's step over `Rates.parts`."""
        return self.step * self.variants.get(variant, 1.0) if fused else self.autograd

    def exchange(self, size: float, *, hosts: int, per_host: int) -> float:
        """Seconds in which every GPU sends and receives so many bytes.

        Between hosts all GPUs' network links work for all, as NCCL's rings do.
        """
        rate = self.link if hosts == 1 else min(self.link, self.network * per_host)
        return self.latency * hosts + size / rate


@cache
def figures(name: str) -> dict[str, Any]:
    """The content of a file of measurements; a `figures` list becomes values by name."""
    found = read_object(MEASURED / name)
    return found | {"values": {f["name"]: f["value"] for f in found.get("figures", ())}}


def kinds() -> dict[str, Any]:
    """The table of GPUs, by name."""
    return read_object(KINDS)["kinds"]


def pace_of_kind(name: str) -> Pace:
    """The pace of a GPU by name.

    Raises:
        UsageError: the table has no such kind.
    """
    table = read_object(KINDS)
    found = table["kinds"].get(name)
    if found is None:
        raise UsageError(
            f"--kind {name!r} is not in the table, which has {', '.join(table['kinds'])}; for "
            "another machine measure it there (`saelab bench road --json FILE`) and give --rates."
        )
    guess = {key: value["value"] for key, value in table["assumed"].items()}
    rates, about = _rates(found, table["kinds"])
    road, train = figures("road-h200.json")["values"], figures("train-h100.json")["values"]
    return Pace(
        name=name,
        memory=found["memory"],
        rates=rates,
        link=guess["reached"] * found["link"],
        network=guess["reached"] * found["network"],
        latency=guess["latency"],
        fused=True,
        step=1.0,
        autograd=guess["autograd"],
        variants=variant_factors(),
        forward=guess["forward"],
        harvest=1 / road["harvest over plain pass"],
        train=train["its steps alone"] / train["training from a store in memory, TopK"],
        evaluate=guess["evaluate"],
        feature_token=1 / road["features"],
        feature_latent=1 / road["evidence"],
        start=guess["start"],
        read=guess["disk"],
        sources=(
            about,
            "Steps of variants, harvest, features and all-reduce: measured on an H200; training "
            "from a store: on an H100 (saelab/bench/measured).",
            "Assumed, not measured: " + "; ".join(v["of"] for v in table["assumed"].values()) + ".",
        ),
    )


def _rates(found: Mapping[str, Any], all_kinds: Mapping[str, Any]) -> tuple[Rates, str]:
    """The measured rates of a kind; else its sheet's, as far as measured kinds reach theirs."""
    if "measured" in found:
        name = found["measured"]
        about = f"{found['device']}: rates measured by saelab on {figures(name)['date']} ({name})."
        return Rates(**figures(name)["rates"]), about
    sheet, both = found["sheet"], [k for k in all_kinds.values() if "measured" in k]
    reached = {
        key: statistics.mean(figures(k["measured"])["rates"][key] / k["sheet"][key] for k in both)
        for key in ("matmul", "copy")
    }
    about = (
        f"{found['device']}: never measured by saelab; its data sheet's rates times what the H100 "
        f"and the H200 reach of theirs ({reached['matmul']:.0%} of products, {reached['copy']:.0%} "
        "of bandwidth)."
    )
    return Rates(**{key: share * sheet[key] for key, share in reached.items()}), about


@cache
def variant_factors() -> dict[str, float]:
    """Time of each variant's fused step over TopK's: medians of all sizes and devices measured."""
    found: dict[str, list[float]] = {}
    for name in ("step-h100.json", "step-h200.json"):
        steps = [s for s in figures(name)["steps"] if s["way"] == "fused"]
        topk = {str(s["shape"]): s["seconds"] for s in steps if s["variant"] == "topk"}
        for s in steps:
            ratio = s["seconds"] / topk[str(s["shape"])]
            found.setdefault(s["variant"], []).append(ratio)
    return {variant: statistics.median(ratios) for variant, ratios in found.items()}


def pace_of_road(path: Path) -> Pace:
    """The pace of the machine on which `saelab bench road --json PATH` ran.

    Raises:
        UsageError: the file is no such measurement.
    """
    found = read_object(path)
    if found.get("benchmark") != ROAD:
        raise UsageError(f"{path} is not written by `saelab bench road --json`; give such a file.")
    try:
        return _pace_of_road(found, path)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{path} is damaged ({error!r}); measure again.") from None


def _pace_of_road(found: dict[str, Any], path: Path) -> Pace:
    stages = {stage["name"]: stage for stage in found["stages"]}
    rates, setting, step = Rates(**found["rates"]), found["setting"], found["step"]
    harvest, features = stages["harvest"], stages["features"]
    law = sum(rates.parts(StepShape(**step["shape"]), step["products"]).values())
    own = step["seconds"] / law
    fused = step["way"] == "fused"
    factors = variant_factors() if fused else {}
    guess = {key: value["value"] for key, value in read_object(KINDS)["assumed"].items()}
    cuda = setting["device"] != "cpu"
    return Pace(
        name=found["device"],
        memory=float(found["memory"]),
        rates=rates,
        link=rates.copy / 4 if cuda else rates.copy,
        network=guess["reached"] * 1.25e9,
        latency=guess["latency"],
        fused=fused,
        step=own / factors.get(setting["variant"], 1.0) if fused else own,
        autograd=guess["autograd"] * own if fused else own,
        variants=factors,
        forward=harvest["operations"] / harvest["floor"] / rates.matmul,
        harvest=harvest["seconds"] / harvest["floor"],
        train=stages["train"]["seconds"] / stages["train"]["floor"],
        evaluate=stages["evaluate"]["seconds"] / stages["evaluate"]["floor"],
        feature_token=features["per_token"],
        feature_latent=features["per_latent"],
        start=stages["start"]["seconds"],
        read=found["read"],
        sources=(
            f"{found['device']}: every stage measured by saelab bench road ({path}).",
            "Not measured there: exchange between devices (a quarter of the copying rate on GPUs).",
        ),
    )

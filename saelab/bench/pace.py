"""How fast a machine is on every part of the road: a kind of GPU by name, or a machine measured.

`kinds.json` has the GPUs by their data sheets, and how far saelab stays from their rates;
`Pace.sources` says what of it is assumed. `measured/` has benchmarks as they were written.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from saelab.bench.machine import Rates, StepShape
from saelab.config import UsageError
from saelab.formats.json_file import read_object
from saelab.kernels.sizes import gram_pays
from saelab.pursuit.steps import GRAM_UPDATE_COST, gram_saves

HERE = Path(__file__).resolve().parent
KINDS, MEASURED = HERE / "kinds.json", HERE / "measured"
USABLE = 0.92
"""Share of a GPU's memory that may be planned with."""
ROAD = "road"
STEPS = "pursuit's steps"
"""The part of matching pursuit's time in which correlations are updated by a Gram matrix."""
ON_CHIP = 670
"""Operations of a product that take as long as a kernel of matching pursuit needs to update one
correlation: at 768 / 32768 / 32 the steps take 7.2 ms on an H100, and as long on an H200."""
SAME_HOST = 0.25
"""Exchange between processes on a CPU, over the rate at which it copies; assumed."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The rates of one GPU (or CPU), and how far saelab stays from them.

    Attributes:
        memory: bytes of the device.
        rates: of products (in bfloat16 on a GPU) and copies.
        link, network: bytes per second that an exchange reaches, one way, in a host and between
            hosts.
        latency: seconds of an exchange without bytes.
        kernels: whether the steps of variants with a fused rule are by kernels alone.
        variants: time of a variant's fused step over TopK's, where measured.
        step: time of a TopK step over `Rates.parts`.
        autograd: time of what an autograd step does beside its product, over the law's.
        single: time of a float32 product over one at `rates.matmul`.
        forward: share of `rates.matmul` that a forward pass reaches.
        harvest, train, evaluate: time of each over its passes (of harvest, or its writing if that
            takes longer) or its steps alone.
        feature_token, feature_latent: seconds of `features` per token beside its passes, and per
            latent beside its products.
        start: seconds until a verb works.
        read, write: bytes of a store per second and host; writing is durable.
        sources: where the figures come from, as sentences.
    """

    name: str
    memory: float
    rates: Rates
    link: float
    network: float
    latency: float
    kernels: bool
    variants: Mapping[str, float]
    step: float
    autograd: float
    single: float
    forward: float
    harvest: float
    train: float
    evaluate: float
    feature_token: float
    feature_latent: float
    start: float
    read: float
    write: float
    sources: tuple[str, ...]

    def step_parts(
        self,
        shape: StepShape,
        variant: str,
        *,
        products: int,
        fused: bool,
        half: bool,
        pursues: bool = False,
    ) -> dict[str, float]:
        """Seconds of the parts of a step; their sum is the step's time.

        `pursues` is for matching pursuit, whose one matrix may have a Gram matrix instead of all
        `products` but the first.
        """
        update = self._update(shape, half=half) if pursues else None
        parts = self.rates.parts(shape, 1 if update else products, 1 if pursues else 2)
        product, steps = parts.pop("encoder's product"), {}
        if update is not None:
            product += 2 * shape.d_sae**2 * shape.d_in / self.rates.matmul
            updated = shape.batch * shape.k * shape.d_sae
            steps = {STEPS: update * updated / self.rates.matmul}
        product *= 1.0 if half else self.single
        beside = self.step if fused else self.autograd
        factor = self.variants.get(variant, 1.0) if fused else 1.0
        found = {"encoder's product": product, **{n: beside * t for n, t in parts.items()}, **steps}
        return {name: factor * seconds for name, seconds in found.items()}

    def _update(self, shape: StepShape, *, half: bool) -> int | None:
        """Operations of a product that take as long as updating a correlation by a Gram matrix.

        None where there is no such matrix.
        """
        batch, m, k = shape.batch, shape.d_sae, shape.k
        if self.kernels:
            return ON_CHIP if gram_pays(batch, m, k, rounds=half) else None
        return 2 * GRAM_UPDATE_COST if gram_saves(batch, m, shape.d_in, k) else None

    def weights_seconds(self, d_sae: int, width: int, d_vocab: int) -> float:
        """Seconds of the products of `features` with an SAE's weights: logits, and all neighbours.

        They are in float32; `width` is d_in + d_out.
        """
        operations = d_sae * width * (d_vocab + 2.0 * d_sae)
        return operations * self.single / self.rates.matmul

    def exchange(self, size: int, *, hosts: int, per_host: int) -> float:
        """Seconds in which every GPU sends and receives so many bytes.

        Between hosts all GPUs' network links work for all, as NCCL's rings do.
        """
        rate = self.link if hosts == 1 else min(self.link, self.network * per_host)
        return self.latency * hosts + size / rate


@cache
def measured(name: str) -> dict[str, Any]:
    """The content of a file of measurements."""
    return read_object(MEASURED / name)


def kinds() -> dict[str, Any]:
    """The table of GPUs, by name."""
    return read_object(KINDS)["kinds"]


def shares() -> dict[str, Any]:
    """How far saelab stays from a GPU's rates, by name: value, what it is, and where measured."""
    return read_object(KINDS)["shares"]


def pace_of_kind(name: str) -> Pace:
    """The pace of a GPU by name.

    Raises:
        UsageError: the table has no such kind.
    """
    table, found = kinds(), kinds().get(name)
    if found is None:
        raise UsageError(
            f"--kind {name!r} is not in the table, which has {', '.join(table)}; for another "
            "machine measure it there (`saelab bench road --json FILE`) and give --rates."
        )
    known, (rates, about) = shares(), _rates(found, table)
    values = {key: share["value"] for key, share in known.items()}
    reached = values.pop("reached")
    assumed = "; ".join(share["of"] for share in known.values() if not share["measured"])
    return Pace(
        name=name,
        memory=found["memory"],
        rates=rates,
        link=reached * found["link"],
        network=reached * found["network"],
        kernels=True,
        variants=variant_factors(),
        step=1.0,
        sources=(about, f"Assumed, not measured: {assumed}."),
        **values,
    )


def _rates(found: Mapping[str, Any], table: Mapping[str, Any]) -> tuple[Rates, str]:
    """The measured rates of a kind; else its sheet's, as far as measured kinds reach theirs."""
    if "steps" in found:
        file = measured(found["steps"])
        return Rates(**file["rates"]), f"{found['device']}: rates measured on {file['date']}."
    both = [kind for kind in table.values() if "steps" in kind]
    reached = {
        key: statistics.mean(measured(k["steps"])["rates"][key] / k["sheet"][key] for k in both)
        for key in ("matmul", "copy")
    }
    about = (
        f"{found['device']}: never measured by saelab; its data sheet's rates times what the H100 "
        f"and the H200 reach of theirs ({reached['matmul']:.0%} of products, {reached['copy']:.0%} "
        "of bandwidth)."
    )
    return Rates(**{key: share * found["sheet"][key] for key, share in reached.items()}), about


@cache
def variant_factors() -> dict[str, float]:
    """Time of each variant's fused step over TopK's: medians of all sizes and devices measured."""
    found: dict[str, list[float]] = {}
    for path in sorted(MEASURED.glob("step-*.json")):
        steps = [s for s in measured(path.name)["steps"] if s["way"] == "fused"]
        topk = {str(s["shape"]): s["seconds"] for s in steps if s["variant"] == "topk"}
        for s in steps:
            ratio = s["seconds"] / topk[str(s["shape"])]
            found.setdefault(s["variant"], []).append(ratio)
    return {variant: statistics.median(ratios) for variant, ratios in found.items()}


def pace_of_road(path: Path, kind: Pace) -> Pace:
    """The pace of the machine on which `saelab bench road --json PATH` ran.

    Of a GPU, what one road does not show (links, other variants, float32) is that of its `kind`.

    Raises:
        UsageError: the file is no such measurement.
    """
    found = read_object(path)
    if found.get("benchmark") != ROAD:
        raise UsageError(f"{path} is not written by `saelab bench road --json`; give such a file.")
    try:
        return _pace_of_road(found, path, kind)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{path} is damaged ({error!r}); measure again.") from None


def _pace_of_road(found: dict[str, Any], path: Path, kind: Pace) -> Pace:
    stages = {stage["name"]: stage for stage in found["stages"]}
    rates, setting, step = Rates(**found["rates"]), found["setting"], found["step"]
    half, kernels = setting["half"], step["way"] == "fused"
    pace = replace(
        kind,
        name=found["device"],
        memory=float(found["memory"]),
        rates=rates,
        link=kind.link if half else SAME_HOST * rates.copy,
        kernels=kernels,
        step=1.0,
        single=kind.single if half else 1.0,
        autograd=kind.autograd if kernels else 1.0,
        forward=found["forward"],
        start=stages["start"]["seconds"],
        read=found["read"],
        # An older file has the writing in the harvest's share.
        write=found.get("write", math.inf),
        sources=(
            f"{found['device']}: every stage measured by saelab bench road ({path}).",
            f"As on {kind.name}: exchange of GPUs, float32, other variants.",
        ),
    )
    return replace(pace, **_shares(pace, setting, step, stages))


def _shares(
    pace: Pace, setting: dict[str, Any], step: dict[str, Any], stages: dict[str, Any]
) -> dict[str, Any]:
    """What a road measured beside the machine's rates."""

    def over(name: str) -> float:
        stage = stages[name]
        return max(1.0, (stage["seconds"] - stage["fixed"]) / stage["floor"])

    features, options = stages["features"], {"products": step["products"], "half": setting["half"]}
    options["pursues"] = step.get("pursues", False)
    parts = pace.step_parts(
        StepShape(**step["shape"]), setting["variant"], fused=pace.kernels, **options
    )
    kept = parts["encoder's product"] + parts.get(STEPS, 0.0)
    own = max(0.1, (step["seconds"] - kept) / (sum(parts.values()) - kept))
    fixed = sum(stages[name]["fixed"] for name in ("harvest", "train", "evaluate")) / 3
    d_sae, width = setting["d_sae"], 2 * setting["d_model"]
    products = pace.weights_seconds(d_sae, width, setting["d_vocab"])
    return {
        "step" if pace.kernels else "autograd": own,
        "harvest": over("harvest"),
        "train": over("train"),
        "evaluate": over("evaluate"),
        "feature_token": max(0.0, features["seconds"] - features["fixed"] - features["floor"])
        / features["tokens"],
        "feature_latent": max(0.0, features["fixed"] - products) / d_sae,
        "start": pace.start + fixed,
    }

"""`saelab bench`: the speed of saelab on this machine, and a comparison of the variants."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from saelab.cli.bench_live import LiveArguments, live
from saelab.cli.bench_road import RoadArguments, travel
from saelab.cli.bench_scale import ScaleArguments, scale
from saelab.cli.bench_step import StepArguments, run, write_json
from saelab.cli.harvest import DTYPES
from saelab.cli.help_text import Command
from saelab.cli.options import Metavar
from saelab.cli.parse import choose, parse
from saelab.config import MAX_D_SAE, Config, Heading, UsageError
from saelab.files import check_file
from saelab.provenance import provenance

if TYPE_CHECKING:
    from saelab.bench.store import StoreSpeed
    from saelab.bench.variants import VariantFigures
    from saelab.lm.protocol import LanguageModel
    from saelab.training.config import TrainConfig


class StoreArguments(Config):
    """Measure the activation store against this machine's limits, in turns in one process.

    Harvesting is compared with its forward passes alone, writing with a plain write and fsync,
    reading with a plain sequential read. Set OMP_NUM_THREADS on a busy machine.

        saelab bench store --directory /data
    """

    directory: Annotated[Path, Heading("Store")] = Path()
    """A directory on the disk to measure; a temporary directory is made in it."""
    mib: int = Field(default=512, gt=0)
    """Size, in MiB, of the store that is written and read."""
    d_in: int = Field(default=768, gt=0)
    """Width of the store's rows."""
    batch_size: int = Field(default=4096, gt=0)
    """Rows per batch."""
    rounds: int = Field(default=4, gt=0)
    """Number of measurements of each kind; the best counts."""
    model: Annotated[str, Heading("Harvest")] = "tiny"
    """Language model to harvest from; the text is the shipped grammar for tiny, else --text."""
    sites: Annotated[tuple[str, ...], Metavar("HOOK")] = ("blocks.2.hook_resid_post",)
    """Sites to harvest."""
    text: str = "tiny"
    """Text to harvest; see `saelab harvest --help`."""
    n_tokens: int = Field(default=100_000, gt=0)
    """Tokens to harvest."""
    contexts: int = Field(default=32, gt=0)
    """Contexts per forward pass."""
    compute_dtype: Literal["bf16", "f16", "f32"] = "f32"
    """Dtype in which the model runs."""
    device: str = "auto"
    """Device of the model and of the batches."""
    json_: Annotated[Path | None, Heading("Output"), Metavar("FILE")] = None
    """Also write the figures to this file, as JSON."""


class VariantsArguments(Config):
    """Train every variant on the same rows, and measure all on the same held-out text.

    All variants share the width, k and the learning rate; other options have each variant's
    defaults. The SAEs train from one read of the store; then the speed of each is measured alone.
    Finished SAEs are kept, so the same command continues an interrupted one. About five minutes on
    2 CPU cores:

        saelab bench variants --out runs/variants

    With --activations, on a store and site of your own (with gradients, for gradient-topk):

        saelab bench variants --activations activations_cache/mine --site blocks.6.hook_resid_post
            --d-sae 4096 --k 32 --n-tokens 5000000 --lr 3e-4 --out runs/mine
    """

    activations: Annotated[Path | None, Heading("Data")] = None
    """A store that `saelab harvest` wrote; default: a new store of the tiny model, below --out."""
    site: str = "blocks.2.hook_resid_post"
    """The store's hook to train on."""
    variants: Annotated[tuple[str, ...], Heading("SAE")] = ()
    """Variants to train; default: all that `saelab train --help` lists."""
    d_sae: Annotated[int, Heading("SAE")] = Field(default=512, gt=0, le=MAX_D_SAE)
    """Latents of every SAE."""
    k: int = Field(default=8, gt=0)
    """Active latents per token. It is exact, an average or a target, depending on the variant;
    variants with an L1 penalty or a prior ignore it."""
    n_tokens: Annotated[int, Heading("Optimisation")] = Field(default=300_000, gt=0)
    """Tokens to train on."""
    batch_size: int = Field(default=512, gt=0)
    """Tokens per step."""
    lr: float = Field(default=8e-3, gt=0)
    """Peak learning rate of all variants that have one; the high default suits short runs on the
    tiny model."""
    seeds: int = Field(default=1, gt=0)
    """Number of seeds per variant; the table shows means, the JSON every SAE."""
    n_eval_tokens: Annotated[int, Heading("Data")] = Field(default=30_000, gt=0)
    """Held-out tokens to measure on."""
    out: Annotated[Path, Heading("Output")] = Path("runs/variants")
    """Directory for the activations, the runs, and variants.json."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    json_: Annotated[Path | None, Metavar("FILE")] = None
    """Also write the figures to this file, as JSON."""


ABOUT = """\
Measure: the store or a training step against this machine, or the variants side by side.

    saelab bench road --json road.json
    saelab bench step
    saelab bench variants --out runs/variants
"""
CHOICES = {
    "road": "Harvest, train, evaluate and features in turn, each beside its floor.",
    "live": "A live sweep of a whole model, beside its passes and its SAEs' steps.",
    "store": "Harvesting, writing and reading, against the plain forward pass and the disk.",
    "step": "One optimizer step of any variant, against what the machine allows.",
    "scale": "One SAE's step in 1, 2, ... processes: strong and weak scaling.",
    "variants": "Every variant on the same rows: figures of each on the same held-out text.",
}


def main(arguments: list[str]) -> int:
    """Parse and run."""
    what = choose(Command("saelab bench", ABOUT, choices=CHOICES, choice="BENCHMARK"), arguments)
    verb, own = f"bench {what}", arguments[1:]
    if what == "step":
        return run(parse(StepArguments, verb, own))
    if what == "road":
        return travel(parse(RoadArguments, verb, own))
    if what == "live":
        return live(parse(LiveArguments, verb, own))
    if what == "scale":
        return scale(parse(ScaleArguments, verb, own), own)
    if what == "store":
        return _store(parse(StoreArguments, verb, own))
    return _variants(parse(VariantsArguments, verb, own))


def _store(args: StoreArguments) -> int:
    if args.json_ is not None:
        check_file(args.json_, "--json")
    with tempfile.TemporaryDirectory(prefix="saelab-bench-", dir=args.directory) as directory:
        results = _measure(args, Path(directory))
    from saelab.console import si

    print(f"{'':<26} {'saelab':>12} {'limit':>12}   {'':<9} {'ratio':>6} {'goal':>6}")
    for r in results:
        speeds = f"{si(r.ours):>12} {si(r.limit):>12}   {r.unit + '/s':<9}"
        print(f"{r.name:<26} {speeds} {r.ratio:>6.2f} {r.goal:>6.2f}")
    speeds = [{**vars(result), "ratio": result.ratio} for result in results]
    setting = args.model_dump(mode="json", exclude={"json_"})
    facts = {"benchmark": "store", "setting": setting, "provenance": provenance()}
    write_json(args.json_, {**facts, "speeds": speeds})
    return 0


def _measure(args: StoreArguments, directory: Path) -> "list[StoreSpeed]":
    import torch

    from saelab.activations.corpus import load_corpus
    from saelab.activations.harvest import HarvestOptions
    from saelab.activations.open_text import check_text
    from saelab.bench.store import compare_harvest, compare_reading, compare_writing
    from saelab.lm.hf import load_hugging_face_model
    from saelab.lm.load import resolve_device

    check_text(args.text)
    rows = max(args.batch_size, args.mib * 2**20 // (2 * args.d_in))
    written = compare_writing(
        directory, rows=rows, d_in=args.d_in, dtype="bfloat16", rounds=args.rounds
    )
    read = [
        compare_reading(
            directory / "written",
            batch_size=args.batch_size,
            rounds=args.rounds,
            cold=cold,
            device=resolve_device(args.device),
        )
        for cold in (True, False)
    ]
    dtype = getattr(torch, DTYPES[args.compute_dtype])
    lm = load_hugging_face_model(args.model, device=args.device, dtype=dtype)
    corpus = load_corpus(args.text, lm)
    options = HarvestOptions(n_tokens=args.n_tokens, batch_size=args.contexts)
    harvested = compare_harvest(
        lm, args.sites, corpus, directory, options=options, rounds=args.rounds
    )
    return [harvested, written, *read]


def _variants(args: VariantsArguments) -> int:
    if args.json_ is not None:
        check_file(args.json_, "--json")
    from saelab.bench.variants import compare_variants, variant_configs
    from saelab.files import check_writable
    from saelab.sae.variants import variants

    check_writable(args.out, "--out")
    lm, base = _prepare(args)
    configs = variant_configs(
        base, args.variants or tuple(variants()), out=args.out, seeds=args.seeds
    )
    results = compare_variants(configs, lm, n_tokens=args.n_eval_tokens, device=args.device)
    setting = args.model_dump(mode="json", exclude={"json_", "out", "variants"})
    setting |= {"activations": str(base.activations), "device": str(lm.device)}
    values = {
        "benchmark": "variants",
        "setting": setting,
        "variants": [asdict(result) for result in results],
        "provenance": provenance(),
    }
    _print_variants(args, results)
    write_json(args.json_, values)
    write_json(args.out / "variants.json", values)
    return 0


def _prepare(args: VariantsArguments) -> "tuple[LanguageModel, TrainConfig]":
    """The model, and the options that all runs share; harvests the tiny model if needed."""
    from saelab.activations.corpus import load_corpus
    from saelab.activations.harvest import HarvestOptions, harvest
    from saelab.activations.store import ActivationStore
    from saelab.lm.load import load_language_model, load_recorded_model
    from saelab.sae.topk import TopKConfig
    from saelab.training.config import TrainConfig

    if args.activations is None:
        lm = load_language_model("tiny", device=args.device)
        store = args.out / "activations"
        options = HarvestOptions(n_tokens=args.n_tokens, gradients=True)
        harvest(lm, [args.site], load_corpus("tiny", lm), out=store, options=options)
    else:
        store = args.activations
        facts = ActivationStore(store).manifest.model
        if facts is None:
            raise UsageError(
                f"{store} holds arrays without a language model, which measures the variants; give "
                "a store that `saelab harvest` wrote."
            )
        lm = load_recorded_model(facts, device=args.device)
    base = TrainConfig(
        sae=TopKConfig(d_sae=args.d_sae, k=args.k),
        activations=store,
        site=args.site,
        n_tokens=args.n_tokens,
        batch_size=args.batch_size,
        lr=args.lr,
        dead_after=max(args.n_tokens // 15, args.batch_size),
    )
    return lm, base


def _print_variants(args: VariantsArguments, results: "Sequence[VariantFigures]") -> None:
    """One line per variant: means over its seeds."""
    from saelab.bench.variants import FOUND, averages
    from saelab.console import si

    print(f"{args.site}, {args.d_sae} latents, k={args.k}, {args.n_tokens} tokens\n")
    print(
        f"{'variant':<20} {'FVU':>7} {'L0':>6} {'CE recovered':>13} {'features found':>15}"
        f" {'dead':>6} {'tokens/s':>9}"
    )
    for name, m in averages(results).items():
        ce = f"{m['ce_recovered']:.2%}" if "ce_recovered" in m else "-"
        found = "-" if "found" not in m else f"{m['found']:.4g} of {m['features']:.4g}"
        print(
            f"{name:<20} {m['fvu']:>7.4f} {m['l0']:>6.2f} {ce:>13} {found:>15}"
            f" {m['dead']:>6.4g} {si(m['tokens_per_second']):>9}"
        )
    print(
        "\nAll but tokens/s are of held-out text. FVU: variance missed (bilinear: of u u^T, so it "
        "does not compare).\nCE recovered: 100 % is the model alone, 0 % zeros. Features found: "
        f"labels that a latent finds\nwith F1 >= {FOUND}. Tokens/s: training it alone."
    )

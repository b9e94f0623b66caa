"""`saelab train`: train a sparse autoencoder."""

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from saelab.cli.declared import declared, declared_variants
from saelab.cli.describe import describe
from saelab.cli.help_text import Command
from saelab.cli.options import Metavar, Option, Positional, options_of
from saelab.cli.parse import choose, parse, read
from saelab.cli.train_budget import CHOSEN, fill
from saelab.config import Config, Heading, UsageError, first_problem
from saelab.files import check_directory
from saelab.ranks import Ranks

if TYPE_CHECKING:
    from saelab.lm.protocol import ActivationSource
    from saelab.training.config import TrainConfig
    from saelab.training.run import Run
    from saelab.training.together import Together

    Asked = tuple[dict[Path, TrainConfig], ActivationSource | None]
    """The runs to train, and the language model if it is loaded already."""

ABOUT = """\
Train a sparse autoencoder on recorded activations.

VARIANT says which kind. Running the same command again continues an interrupted run. With
--target-site it is a transcoder, which reconstructs another site of the store than it reads.

Several processes train one SAE together, each with its share of the latents, when torchrun starts
them: torchrun --nproc-per-node 2 -m saelab.cli train ... With --replicas they also share out the
rows of each batch.
"""
EXAMPLE = """
    saelab train {variant} --activations activations_cache/tiny
        --site blocks.2.hook_resid_post --d-sae 1024 --n-tokens 4000000 --out runs/{variant}
    saelab train {variant} --activations activations_cache/tiny
        --site blocks.2.hook_resid_post --budget 10m --out runs/{variant}
"""
MORE = """
The options below are those of all variants; `saelab train VARIANT --help` lists also its own, with
the values of its paper, and `saelab train sweep --help` shows how to train many from one file.
"""
SinkKind = Literal["tensorboard", "wandb"]
STORE = "activations"
"""Where a sweep makes its own store, in --out."""
HEADINGS = ("Data", "SAE", "Optimisation", "Run")


class TrainArguments(Config):
    """Options that belong to this process, not to the training."""

    budget: Annotated[str | None, Heading("Data"), Metavar("TIME")] = None
    """Choose what is not given of --d-sae, --k, --batch-size and --n-tokens for a training of this
    time, e.g. 10m, from what this machine is measured to do, and say why."""
    out: Annotated[Path, Heading("Run")]
    """The run's directory, usually runs/NAME."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    replicas: int = Field(default=1, gt=0)
    """Of N processes that torchrun starts, N / replicas share the latents, and each of so many
    replicas reads its part of every batch; their gradients are averaged. The SAE is the one that
    one process trains. It pays on more than about 8 GPUs, with large batches."""
    log: tuple[SinkKind, ...] = ()
    """Log also to these, beside metrics.jsonl; their packages are installed separately."""


class SweepArguments(Config):
    """Train every SAE of a sweep file; SAEs on the same rows share one read of the store.

    The file is JSON: {"base": {options}, "grid": {"sae.k": [8, 16], "seed": [0, 1]}, "runs":
    {"name": {options}}}. Each combination of the grid and each entry of runs is a run in --out.
    Options are those of `saelab train VARIANT --help` with underscores; an SAE's own are below
    "sae", beside its "variant". Runs with different seeds share a read if they have the same
    "data_seed". The same command continues an interrupted sweep.

        saelab train sweep sweep.json --out runs/sweep

    A * in a site stands for every layer of which the store has that site, or for those of
    "layers": [0, 5]; each is a run of its own, NAME-LAYER. With --live, one forward pass of the
    model feeds all SAEs of all sites, and no activation is written. This file trains a transcoder
    of every MLP and an SAE of every layer's attention; its "harvest", options of `saelab harvest`
    without sites, makes the small store that gives scales, first rows and calibration:

        {"harvest": {"model": "tiny", "text": "tiny", "n_tokens": 40000},
        "base": {"n_tokens": 2000000,
        "sae": {"variant": "topk", "d_sae": 512, "k": 16}},
        "runs": {"attn": {"site": "blocks.*.attn.hook_z"},
        "mlp": {"site": "blocks.*.ln2.hook_out",
        "target_site": "blocks.*.hook_mlp_out"}}}

    A "recipe" makes the runs of a set, which evaluate, features, circuit and browse take as one
    thing: "transcoders" (of every MLP, from mlp.hook_in to hook_mlp_out), "transcoders+attention"
    (also an SAE of every attn.hook_z) or "clt" (one cross-layer transcoder of all MLPs, without
    --live). "runs" may change them by name, "mlp" and "attention":

        {"recipe": "transcoders+attention", "base": {...},
        "runs": {"attention": {"sae.k": 24}}}

    Of a live sweep, each of several processes that torchrun starts runs the model on a share of the
    text and trains some of the SAEs; the runs are those of one process. An SAE that is too wide for
    one of them is held by all.

    A grid of "sae.d_sae" and "sae.k" with --description-length says which width and k describe the
    activations in the fewest bits (2410.11179).
    """

    file: Annotated[Path, Positional("FILE")]
    """The sweep file."""
    out: Path
    """The directory of the runs."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    replicas: int = Field(default=1, gt=0)
    """Replicas of the rows, as of `saelab train VARIANT`; not with --live."""
    log: tuple[SinkKind, ...] = ()
    """Log also to these, beside metrics.jsonl; their packages are installed separately."""
    live: bool = False
    """Feed all SAEs from one running model, as `saelab train VARIANT --live` feeds one."""
    description_length: bool = False
    """Compare the SAEs' description lengths on rows held back from training: bits per token of the
    codes, and of what each SAE misses. Written to description_length.json and .html in --out."""
    fvu: float | None = Field(default=None, gt=0, lt=1)
    """With --description-length: the FVU at which they are compared; default: the lowest of all."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    variants = _variants()
    about = {name: inspect.cleandoc(cls.__doc__ or "") for name, cls in variants.items()}
    choices = {name: text.partition("\n")[0] for name, text in about.items()}
    choices["sweep"] = "Many SAEs, as a file describes them."
    text = ABOUT + EXAMPLE.format(variant="topk") + MORE
    command = Command("saelab train", text, _options(None), choices, "VARIANT", CHOSEN)
    name = choose(command, arguments)
    if name == "sweep":
        sweep = parse(SweepArguments, "train sweep", arguments[1:])
        runs = _sweep(sweep)
    else:
        sweep = None
        text = about[name]
        # A variant that this cannot train, e.g. since it reads several sites, has its own example.
        if f"\n    saelab train {name} " not in text:
            text += f"\n{EXAMPLE.format(variant=name)}"
        options = _options(variants[name])
        command = Command(f"saelab train {name}", text, options, chosen_by=CHOSEN)
        runs = [_train(name, read(command, arguments[1:]))]
    if not Ranks.from_environment().leads:
        return 0
    for run in runs:
        last = run.metrics()[-1]
        figures = f"FVU {last['fvu']:.4f}, L0 {last['l0']:.1f}, dead {last['dead']:.0f}"
        print(figures if len(runs) == 1 else f"{run.name:<32} {figures}")
    if sweep is not None and sweep.description_length:
        describe(runs, sweep.out, fvu=sweep.fvu, device=sweep.device)
    print(runs[0].path if len(runs) == 1 else runs[0].path.parent)
    return 0


def _variants() -> Mapping[str, type[BaseModel]]:
    """The variants by name; the real classes if packages or a notebook have added some."""
    if "torch" in sys.modules or entry_points(group=declared("saelab.sae.variants", "GROUP")):
        from saelab.sae.variants import variants

        return variants()
    return declared_variants()


def _options(variant: type[BaseModel] | None) -> list[Option]:
    """The options of TrainConfig, of a variant and of this process, related ones together."""
    own = options_of(variant or declared("saelab.sae.base", "AbstractSAEConfig"))
    found = [Option(o.key, o.field, "SAE") for o in own if o.key != "variant"]
    found += options_of(declared("saelab.training.config", "TrainConfig", "sae"))
    found += options_of(TrainArguments)
    return sorted(found, key=lambda option: HEADINGS.index(option.heading))


def _train(variant: str, values: dict[str, object]) -> "Run":
    from saelab.training.config import TrainConfig

    own = {key: values.pop(key) for key in list(values) if key not in TrainConfig.model_fields}
    args = TrainArguments.model_validate(
        {k: own.pop(k) for k in TrainArguments.model_fields if k in own}
    )
    check_directory(args.out, "--out")
    if args.budget is not None:
        fill(args.budget, variant, own, values, args.out, args.device)
    config = TrainConfig.model_validate({**values, "sae": {**own, "variant": variant}})
    return _trained(lambda _: ({args.out: config}, None), args)[0]


def _sweep(args: SweepArguments) -> "list[Run]":
    from saelab.training.sweep import check_runs, read_harvest, read_sweep
    from saelab.training.together import Together

    check_directory(args.out, "--out")
    if args.fvu is not None and not args.description_length:
        raise UsageError("--fvu belongs to --description-length; give both.")
    given: dict[str, object] = {"live": True} if args.live else {}
    own = read_harvest(args.file)

    def asked(all_of_us: Together) -> "Asked":
        lm = None
        if own is not None:
            given["activations"] = str(args.out / STORE)
            check_runs(args.file, **given)
            with all_of_us.agreeing():
                if all_of_us.ranks.leads:
                    lm = _make_store(args, own)
        found = read_sweep(args.file, **given)
        if own is not None and STORE in found:
            raise UsageError(f"{args.file}: {STORE} is the sweep's store; rename this run.")
        if args.description_length:
            from saelab.evaluation.mdl_sweep import check_comparable

            check_comparable(found)
        _write_set(args, found, all_of_us)
        return {args.out / name: config for name, config in found.items()}, lm

    return _trained(asked, args)


def _write_set(
    args: SweepArguments, configs: "dict[str, TrainConfig]", all_of_us: "Together"
) -> None:
    """Write the manifest of the set, if the sweep has a recipe."""
    from saelab.activations.store import ActivationStore
    from saelab.training.sets import write_set
    from saelab.training.sweep import read_recipe

    if (recipe := read_recipe(args.file)) is None:
        return
    with all_of_us.agreeing():
        if all_of_us.ranks.leads:
            store = ActivationStore(next(iter(configs.values())).activations)
            write_set(args.out, recipe, store.manifest.model, configs)


def _make_store(args: SweepArguments, own: dict[str, Any]) -> "ActivationSource | None":
    """Make the store of the sites of a sweep's runs; returns the model, if training may run it.

    If the file names a back end, each process takes the model's faster one for training.
    """
    from saelab.cli.harvest import HarvestArguments, harvested, load_model
    from saelab.training.sweep import sites_of

    out, every = args.out / STORE, sites_of(args.file, 1)
    try:
        options = {**own, "device": args.device, "sites": every, "out": out}
        asked = HarvestArguments.model_validate(options)
    except ValidationError as error:
        raise UsageError(f"{args.file}: harvest: {first_problem(error)}.") from error
    lm = load_model(asked, every)
    sites = tuple(sites_of(args.file, lm.info.n_layers))
    harvested(asked.model_copy(update={"sites": sites}), lm, Ranks())
    return lm if asked.backend == "auto" else None


def _trained(
    ask: "Callable[[Together], Asked]", args: TrainArguments | SweepArguments
) -> "list[Run]":
    """The trained runs, logged where they are asked to be."""
    from saelab.training.sinks import logging_to

    with logging_to(args.log):
        return _all_trained(ask, args.device, args.replicas)


def _all_trained(ask: "Callable[[Together], Asked]", device: str, replicas: int) -> "list[Run]":
    """The trained runs; several processes that torchrun started train them together."""
    from saelab.training.loop import train_many
    from saelab.training.together import Together, together

    ranks = Ranks.from_environment()
    if ranks.world == 1:
        Together().replicate(replicas)
        configs, lm = ask(Together())
        return train_many(configs, device=device, lm=lm)
    from saelab.lm.load import own_device

    where = own_device(device)
    with together(ranks, where, replicas) as all_of_us:
        configs, lm = ask(all_of_us)
        told = {
            f"{name} of {out}": json.dumps(value)
            for out, config in configs.items()
            for name, value in config.model_dump(mode="json").items()
        }
        all_of_us.check_same({"device": where.type, **told})
        return train_many(configs, device=where, lm=lm, together=all_of_us)

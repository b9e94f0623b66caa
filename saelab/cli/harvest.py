"""`saelab harvest`: record a language model's activations."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from saelab.cli.options import Metavar
from saelab.cli.parse import parse
from saelab.config import Config, Heading
from saelab.files import check_directory

if TYPE_CHECKING:
    from saelab.activations.corpus import Corpus
    from saelab.activations.format import Manifest
    from saelab.activations.harvest import HarvestOptions
    from saelab.activations.store import ActivationStore
    from saelab.lm.protocol import ActivationSource
    from saelab.ranks import Ranks


class HarvestArguments(Config):
    """Record a language model's activations on a text.

    One forward pass serves all sites and stops at the last one. The same command continues an
    interrupted harvest.

        saelab harvest --model tiny --sites blocks.2.hook_resid_post --text tiny
            --n-tokens 500000 --out activations_cache/tiny

    Several processes write one store together when torchrun starts them, or when RANK and
    WORLD_SIZE are set:

        torchrun --nproc-per-node 2 -m saelab.cli harvest ...
    """

    model: Annotated[str, Heading("Model")]
    """tiny (shipped), a local checkpoint directory, or any TransformerLens model name."""
    sites: Annotated[tuple[str, ...], Metavar("HOOK")]
    """TransformerLens hook names, e.g. blocks.2.hook_resid_post blocks.1.attn.hook_z."""
    text: Annotated[str, Heading("Text")]
    """tiny (the shipped grammar), a text file, a file of JSON objects (.jsonl, .ndjson, ...; also
    .gz), a directory of these, or hf:name[:split], hf:name:config:split (streamed)."""
    text_field: str = "text"
    """The field of a JSON object, or the column of a dataset, that holds the text."""
    labels: Annotated[tuple[str, ...], Metavar("FIELD or FILE")] = ()
    """Labels of the text: fields of its rows, or a JSONL file with a row for each document;
    default: the rows' own labels and spans, if they have any; none: no labels.
    activations_cache/README.md describes the forms."""
    roles: tuple[str, ...] = ()
    """In conversations (rows with messages): the roles whose tokens to record, e.g. assistant;
    template stands for text of the chat template. The model reads all tokens. Default: all."""
    n_tokens: int = Field(gt=0)
    """Tokens to record, rounded up to whole contexts; special tokens do not count."""
    out: Annotated[Path, Heading("Store")]
    """The store's directory, usually activations_cache/NAME."""
    dtype: Literal["bf16", "f16", "f32"] = "bf16"
    """Dtype of the stored activations."""
    compute_dtype: Annotated[Literal["bf16", "f16", "f32"], Heading("Model")] = "f32"
    """Dtype in which the model runs, which is recorded; bf16 is several times as fast on a GPU."""
    context_length: Annotated[int | None, Heading("Text")] = None
    """Positions per context, BOS included; default: 128, or the model's limit if lower."""
    batch_size: Annotated[int | None, Heading("Model")] = Field(default=None, gt=0)
    """Contexts per forward pass; default: 32, and on a GPU those of 32,768 positions if they are
    more (with --gradients not)."""
    seed: Annotated[int, Heading("Text")] = Field(default=0, ge=0)
    """Decides the order of the rows, and the random order of blocks in which files are read."""
    gradients: Annotated[bool, Heading("Store")] = False
    """Store dL/dx of the summed next-token loss beside every site, as <HOOK>.gradient."""
    backend: Annotated[Literal["auto", "transformer-lens", "hugging-face"], Heading("Model")] = (
        "auto"
    )
    """How the model runs: hugging-face is up to twice as fast and has the residual streams, heads,
    attention and MLP outputs of common architectures; auto takes it where it can."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes the GPU if there is one."""


DTYPES: dict[str, Any] = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(HarvestArguments, "harvest", arguments)
    check_directory(args.out, "--out")
    # Imported here, so that --help does not wait for torch.
    from saelab.ranks import Ranks

    store = harvested(args, load_model(args, args.sites), Ranks.from_environment())
    if store.complete:
        print(f"{store.n_rows} rows at {len(store.sites)} sites")
        print(args.out)
    return 0


def harvested(args: HarvestArguments, lm: "ActivationSource", ranks: "Ranks") -> "ActivationStore":
    """The store that these options describe.

    Raises:
        UsageError: as for `saelab.activations.harvest.harvest`.
    """
    from saelab.activations.corpus import load_corpus
    from saelab.activations.harvest import HarvestOptions, plan, record

    corpus = load_corpus(
        args.text,
        lm,
        context_length=args.context_length,
        seed=args.seed,
        max_tokens=args.n_tokens if args.text.startswith("hf:") else None,
        text_field=args.text_field,
        labels=args.labels,
        roles=args.roles,
    )
    options = HarvestOptions(
        args.n_tokens,
        DTYPES[args.dtype],
        args.batch_size,
        args.seed,
        args.gradients,
    )
    manifest = plan(lm, args.sites, corpus, options).planned_in(args.out)
    if ranks.rank == 0:
        _print_plan(args.out, manifest)
        _print_time(_seconds(args.out, lm, corpus, manifest, options, ranks))
    return record(lm, corpus, manifest, out=args.out, options=options, ranks=ranks)


def load_model(args: HarvestArguments, sites: "Sequence[str]") -> "ActivationSource":
    """The model to harvest, by a backend that has these sites.

    Raises:
        UsageError: the text is not there, before the model is loaded, or the model does not fit.
    """
    import torch

    from saelab.activations.open_text import check_text
    from saelab.lm.hf import load_hugging_face_model, load_source
    from saelab.lm.load import load_language_model, own_device

    check_text(args.text, args.labels)
    device, dtype = own_device(args.device), getattr(torch, DTYPES[args.compute_dtype])
    if args.backend == "auto":
        return load_source(args.model, sites, device=device, dtype=dtype)
    plain = args.backend == "hugging-face"
    load = load_hugging_face_model if plain else load_language_model
    return load(args.model, device=device, dtype=dtype)


def _seconds(
    out: Path,
    lm: "ActivationSource",
    corpus: "Corpus",
    manifest: "Manifest",
    options: "HarvestOptions",
    ranks: "Ranks",
) -> float:
    """Seconds of the forward passes over what is missing, shared by all processes."""
    from saelab.activations.forward import seconds_per_token
    from saelab.activations.harvest import packing_of
    from saelab.activations.space import missing_units

    share = missing_units(out, manifest) / manifest.n_units / ranks.world
    if share == 0:
        return 0.0
    packing = packing_of(lm, corpus, manifest, options)
    at_once = options.contexts_at_once(lm.device, manifest.context_length)
    some = packing.read(0, packing.available(min(manifest.n_contexts, at_once)))
    return seconds_per_token(lm, manifest.sites, some) * share * options.n_tokens


def _print_time(seconds: float) -> None:
    from saelab.console import duration, say

    text = f"time    {duration(seconds)} of forward passes, judged by one batch"
    say(text)


def _print_plan(out: Path, manifest: "Manifest") -> None:
    from saelab.activations.space import require_space, unit_memory
    from saelab.console import in_bytes, say
    from saelab.resources import free_bytes

    tokens = manifest.n_contexts * manifest.context_length
    about = "" if manifest.counted else "about "
    packed = ", short documents side by side" if manifest.packed else ""
    lines = (
        f"{len(manifest.sites)} sites, {about}{tokens} positions in {about}{manifest.n_contexts} "
        f"contexts{packed}",
        f"disk    {in_bytes(require_space(out, manifest))} to write, {in_bytes(free_bytes(out))} "
        f"free, in {manifest.n_units} units",
        f"memory  {in_bytes(unit_memory(manifest))} beside the model and the text, per process",
    )
    say("\n".join(lines))

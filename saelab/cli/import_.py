"""`saelab import`: make a run of an SAE that another tool trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, Heading, UsageError
from saelab.files import check_writable

if TYPE_CHECKING:
    from saelab.sae.interop.foreign import ForeignSAE
    from saelab.sae.interop.releases import Known
    from saelab.sae.interop.sources import Located


class ImportArguments(Config):
    """Make a run of an SAE that another tool trained, to evaluate, explain and browse it.

    SOURCE is a file or directory; a release by name, as `saelab import list` shows them;
    hf:owner/repo/path on the Hugging Face Hub; or saelens:RELEASE/ID of an installed SAELens.
    Files are fetched into the hub's cache, and the commit is recorded.

    Read are SAELens, Gemma Scope 1 and 2, Qwen-Scope, Llama Scope, OpenAI, Goodfire,
    dictionary_learning, sparsify and circuit-tracer: SAEs, transcoders (of circuit-tracer's give
    one layer_N.safetensors), and directories of a cross-layer transcoder (circuit-tracer, Gemma
    Scope 2) or of a crosscoder (Gemma Scope 2). What a file is, its contents say. Only plain
    tensors are unpickled.

    First harvest the site that the SAE was trained on: the store says which model and text the run
    belongs to.

        saelab import gemma-scope-2/270m-pt/resid/12/16k/medium --activations store --out runs/gs2
        saelab import gemma/params.npz --activations activations_cache/gemma
            --site blocks.12.hook_resid_post --out runs/gemma-scope
    """

    source: Annotated[str, Positional("SOURCE")]
    """The file, the directory, or the name."""
    activations: Path
    """A store of the site's activations, from `saelab harvest`."""
    out: Path
    """The run's directory."""
    site: str | None = None
    """The hook that the SAE reads; default: as in the file."""
    target_site: str | None = None
    """The hook that a transcoder reconstructs; default: as in the file. Where a file does not say
    whether it is a transcoder, this does."""
    k: int | None = None
    """Latents that a TopK SAE keeps in each row, where neither its file nor its name says it."""
    dtype: Literal["stored", "float32", "float16", "bfloat16"] = "stored"
    """Dtype of W_enc and W_dec in the run. stored: 16 bits stay 16 bits, unless a scale of the
    file is folded into them. Sums are float32's whatever it is."""
    from_: Annotated[Path | None, Heading("Names")] = None
    """A directory with the repository's files, under their own paths, instead of the hub."""
    revision: str | None = None
    """Branch, tag or commit of the repository; default: main."""


class ListArguments(Config):
    """Show the releases that can be imported by name; with WORDS, those in which all occur.

    saelab import list
    saelab import list gemma transcoder
    """

    words: Annotated[tuple[str, ...], Positional("WORDS")] = ()
    """Words to look for in names, models and descriptions."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    if arguments[:1] == ["list"]:
        return _list(parse(ListArguments, "import list", arguments[1:]).words)
    args = parse(ImportArguments, "import", arguments)
    check_writable(args.out, "--out")
    # Imported here, so that --help does not wait for torch.
    from saelab.sae.interop.circuit_tracer_clt import holds_clt
    from saelab.sae.interop.gemma_scope_layers import holds_params_of_layers
    from saelab.sae.interop.hints import Hints
    from saelab.sae.interop.sources import locate, read_located

    located = locate(args.source, folder=args.from_, revision=args.revision)
    if holds_clt(located.path) or holds_params_of_layers(located.path):
        return _cross_layer(args, located)
    foreign = read_located(located, Hints(args.k, True if args.target_site else None))
    return _import(args, located, foreign)


def _import(args: ImportArguments, located: "Located", foreign: "ForeignSAE") -> int:
    import torch

    from saelab.sae.interop.convert import from_foreign
    from saelab.training.adopt import adopt, mean_norm

    site = args.site or foreign.hook
    if site is None:
        raise UsageError(f"{args.source} does not say which hook its SAE reads; give --site.")
    if foreign.hook not in (None, site):
        raise UsageError(f"{args.source} says that its SAE reads {foreign.hook}, not {site}.")
    target_site = _target_site(args, foreign)
    notes = _notes(foreign)
    if foreign.unscaled:
        size = mean_norm(args.activations, site)
        foreign = foreign.for_rows_of_norm(size)
        notes.append(
            f"Rows are scaled to a mean norm of sqrt(d_in), by the mean norm {size:.4g} of the "
            "store's rows, since the file does not say that of its own."
        )
    if args.dtype != "stored":
        foreign = foreign.with_matrices_of(getattr(torch, args.dtype))
    sae = from_foreign(foreign, copied=False)
    origin = f"{foreign.source}: {located.origin}"
    store, sites = args.activations, {"site": site, "target_site": target_site}
    facts = {"imported_from": origin, **_facts(located.known, notes)}
    run = adopt(sae, activations=store, out=args.out, origin=facts, **sites)
    variant, model = run.options["sae"]["variant"], foreign.model or "a model it does not name"
    print(f"{foreign.source}: {variant}, d_in {sae.d_in}, d_sae {sae.d_sae}, trained on {model}")
    if (known := located.known) is not None and known.licence is not None:
        print(f"licence: {known.licence}" + (f"; {known.paper}" if known.paper else ""))
    for note in notes:
        print(note)
    print(run.path)
    return 0


def _notes(foreign: "ForeignSAE") -> list[str]:
    """What somebody who uses the SAE must know."""
    from saelab.sae.row_norm import TOLD

    notes = [foreign.note] if foreign.note else []
    if foreign.row_norm is not None:
        told = TOLD[foreign.row_norm]
        notes.append(f"Rows are normalised ({foreign.row_norm}): {told}.")
    return notes


def _facts(known: "Known | None", notes: list[str]) -> dict[str, object]:
    """What is recorded with the run beside its origin."""
    facts: dict[str, object] = {"notes": notes} if notes else {}
    if known is not None and known.licence is not None:
        facts |= {"licence": known.licence, "paper": known.paper}
    if known is not None and known.figures:
        facts["stated"] = {key: list(span) for key, span in known.figures.items()}
    return facts


def _list(words: tuple[str, ...]) -> int:
    from rich.table import Table

    from saelab.cli.tables import wide_console
    from saelab.sae.interop.releases import search

    found = search(words)
    if not found:
        raise UsageError(f"No release has all of {', '.join(words)}; leave out a word.")
    console = wide_console()
    for release in found:
        console.print(release.name, markup=False, highlight=False, style="bold")
        console.print(f"  {release.about}", markup=False, highlight=False)
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
        for word, values in release.values.items():
            shown = "a number" if values == "number" else ", ".join(values)
            table.add_row(word, shown)
        if release.values:
            console.print(table)
        told = [release.repo, release.licence, release.paper]
        console.print("  " + "; ".join(filter(None, told)), markup=False, highlight=False)
    return 0


def _cross_layer(args: ImportArguments, located: "Located") -> int:
    import torch

    from saelab.resources import Plan
    from saelab.sae.interop.circuit_tracer import NOTE
    from saelab.sae.interop.circuit_tracer_clt import from_foreign_clt, holds_clt, read_clt
    from saelab.sae.interop.gemma_scope_layers import read_params_of_layers
    from saelab.training.adopt import adopt

    if args.dtype != "stored":
        raise UsageError(
            f"A cross-layer transcoder is stored as float32; leave out --dtype {args.dtype}."
        )
    of_circuit_tracer = holds_clt(located.path)
    foreign = (read_clt if of_circuit_tracer else read_params_of_layers)(located.path)
    target = None if foreign.crosscoder else foreign.writes
    sites = {"site": args.site or foreign.reads, "target_site": args.target_site or target}
    remedy = "use a machine with more"
    Plan("import", torch.device("cpu"), foreign.n_bytes, remedy).announce()
    sae = from_foreign_clt(foreign)
    facts = {"imported_from": f"{foreign.source}: {located.origin}", **_facts(located.known, [])}
    run = adopt(sae, activations=args.activations, out=args.out, origin=facts, **sites)
    n, model = len(foreign.layers), foreign.model or "a model it does not name"
    print(f"{foreign.source}: clt, {n} layers, d_sae {sae.d_sae}, trained on {model}")
    if of_circuit_tracer:
        print(NOTE)
    print(run.path)
    return 0


def _target_site(args: ImportArguments, foreign: "ForeignSAE") -> str | None:
    if not foreign.transcoder:
        if args.target_site is not None:
            raise UsageError(f"{args.source} is no transcoder; leave out --target-site.")
        return None
    target = args.target_site or foreign.hook_out
    if target is None:
        raise UsageError(
            f"{args.source} does not say which hook its transcoder reconstructs; "
            "give --target-site."
        )
    if foreign.hook_out not in (None, target):
        raise UsageError(
            f"{args.source} says that its transcoder reconstructs {foreign.hook_out}, not {target}."
        )
    return target

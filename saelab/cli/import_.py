"""`saelab import`: make a run of an SAE that another tool trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, UsageError
from saelab.files import check_writable

if TYPE_CHECKING:
    from saelab.sae.interop.foreign import ForeignSAE


class ImportArguments(Config):
    """Make a run of an SAE that another tool trained, to evaluate, explain and browse it.

    Reads SAELens (standard, TopK, BatchTopK, JumpReLU, Matryoshka, gated, matching pursuit,
    transcoders), Gemma Scope params.npz, dictionary_learning ae.pt, sparsify directories
    (transcoders too) and circuit-tracer's transcoders (give one layer_N.safetensors, or the
    directory of a cross-layer transcoder); the format is detected. Only plain tensors are
    unpickled.
    First harvest the site that the SAE was trained on: the store says which model and text the run
    belongs to.

        saelab import gemma/params.npz --activations activations_cache/gemma
            --site blocks.12.hook_resid_post --out runs/gemma-scope
    """

    path: Annotated[Path, Positional("PATH")]
    """The file or directory with the SAE."""
    activations: Path
    """A store of the site's activations, from `saelab harvest`."""
    out: Path
    """The run's directory."""
    site: str | None = None
    """The hook that the SAE reads; default: as in the file."""
    target_site: str | None = None
    """The hook that a transcoder reconstructs; default: as in the file."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(ImportArguments, "import", arguments)
    check_writable(args.out, "--out")
    # Imported here, so that --help does not wait for torch.
    from saelab.sae.interop.circuit_tracer_clt import holds_clt
    from saelab.sae.interop.convert import from_foreign
    from saelab.sae.interop.detect import read_foreign
    from saelab.training.adopt import adopt

    if holds_clt(args.path):
        return _cross_layer(args)
    foreign = read_foreign(args.path)
    site = args.site or foreign.hook
    if site is None:
        raise UsageError(f"{args.path} does not say which hook its SAE reads; give --site.")
    if foreign.hook not in (None, site):
        raise UsageError(f"{args.path} says that its SAE reads {foreign.hook}, not {site}.")
    target_site = _target_site(args, foreign)
    sae = from_foreign(foreign)
    origin = f"{foreign.source}: {args.path}"
    store, sites = args.activations, {"site": site, "target_site": target_site}
    run = adopt(sae, activations=store, out=args.out, origin=origin, **sites)
    variant, model = run.options["sae"]["variant"], foreign.model or "a model it does not name"
    print(f"{foreign.source}: {variant}, d_in {sae.d_in}, d_sae {sae.d_sae}, trained on {model}")
    if foreign.note:
        print(foreign.note)
    print(run.path)
    return 0


def _cross_layer(args: ImportArguments) -> int:
    from saelab.sae.interop.circuit_tracer import NOTE
    from saelab.sae.interop.circuit_tracer_clt import from_foreign_clt, read_clt
    from saelab.training.adopt import adopt

    foreign = read_clt(args.path)
    sites = {"site": args.site or foreign.reads, "target_site": args.target_site or foreign.writes}
    sae = from_foreign_clt(foreign)
    origin = f"circuit-tracer: {args.path}"
    run = adopt(sae, activations=args.activations, out=args.out, origin=origin, **sites)
    n, model = len(foreign.layers), foreign.model or "a model it does not name"
    print(f"circuit-tracer: clt, {n} layers, d_sae {sae.d_sae}, trained on {model}")
    print(NOTE)
    print(run.path)
    return 0


def _target_site(args: ImportArguments, foreign: "ForeignSAE") -> str | None:
    if not foreign.transcoder:
        if args.target_site is not None:
            raise UsageError(f"{args.path} is no transcoder; leave out --target-site.")
        return None
    target = args.target_site or foreign.hook_out
    if target is None:
        raise UsageError(
            f"{args.path} does not say which hook its transcoder reconstructs; give --target-site."
        )
    if foreign.hook_out not in (None, target):
        raise UsageError(
            f"{args.path} says that its transcoder reconstructs {foreign.hook_out}, not {target}."
        )
    return target

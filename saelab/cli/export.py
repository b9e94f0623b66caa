"""`saelab export`: write a run's SAE for another tool."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import NonNegativeInt

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, UsageError
from saelab.files import check_writable


class ExportArguments(Config):
    """Write a run's SAE in the form that another tool loads.

    TopK (also hierarchical and gradient), AbsTopK, BatchTopK, Matryoshka, JumpReLU, standard,
    gated and (to SAELens) matching-pursuit SAEs can be exported. SAELens also gets transcoders of
    BatchTopK, Matryoshka, JumpReLU and standard; it reads SAEs with batch-level selection as
    JumpReLU with their threshold. circuit-tracer gets transcoders of the same variants: give the
    runs of all layers the same --out, one after another. It also gets a clt run of selection
    batch-topk or jumprelu, as a directory of W_enc_N and W_dec_N. sparsify gets TopK SAEs and
    transcoders; it names an SAE's directory after its module, such as layers.3.

    --to neuronpedia writes no SAE, but what `saelab features` collected of its latents, as the JSON
    of Neuronpedia's dashboards.

        saelab export runs/topk --out exported/topk
        saelab export runs/topk --to neuronpedia --latents 12 99 --out dashboards
    """

    run: Annotated[Path, Positional("RUN")]
    """The run's directory."""
    out: Path
    """A new directory for cfg.json and sae_weights.safetensors, for config.json and ae.pt, or for
    config.yaml and layer_N.safetensors, or for batch-N.json."""
    to: Literal["sae-lens", "dictionary-learning", "sparsify", "circuit-tracer", "neuronpedia"] = (
        "sae-lens"
    )
    """The tool to write for: SAELens (SAE.load_from_disk), dictionary_learning
    (load_dictionary), sparsify (SparseCoder.load_from_disk), circuit-tracer (a transcoder set), or
    Neuronpedia."""
    latents: tuple[NonNegativeInt, ...] = ()
    """The latents to write for Neuronpedia; default: all."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(ExportArguments, "export", arguments)
    check_writable(args.out, "--out")
    if args.to == "neuronpedia":
        return _dashboards(args)
    if args.latents:
        raise UsageError(f"--latents are for --to neuronpedia; {args.to} gets the whole SAE.")
    # Imported here, so that --help does not wait for torch.
    from saelab.sae.interop.circuit_tracer import write_circuit_tracer
    from saelab.sae.interop.circuit_tracer_clt import to_foreign_clt, write_clt
    from saelab.sae.interop.dictionary_learning_write import write_dictionary_learning
    from saelab.sae.interop.sae_lens_write import write_sae_lens
    from saelab.sae.interop.sparsify_write import write_sparsify
    from saelab.training.give import give
    from saelab.training.run import Run

    run = Run(args.run)
    model, sae = run.provenance()["model"], run.load_sae()
    if args.to == "circuit-tracer" and len(sae.widths) > 1:
        name = None if model is None else Path(model["name"]).name
        parts = run.domain.parts, run.domain.target_parts
        factors = [part.factor for part in parts[0]], [part.factor for part in parts[1]]
        sites = run.config.site, run.config.written_site
        write_clt(to_foreign_clt(sae, sites, factors, name), args.out)
        print(args.out)
        return 0
    writers = {
        "sae-lens": write_sae_lens,
        "dictionary-learning": write_dictionary_learning,
        "sparsify": write_sparsify,
        "circuit-tracer": write_circuit_tracer,
    }
    writers[args.to](give(run), args.out)
    print(args.out)
    return 0


def _dashboards(args: ExportArguments) -> int:
    from saelab.analysis.neuronpedia import write_neuronpedia
    from saelab.console import in_bytes
    from saelab.training.run import Run

    paths = write_neuronpedia(Run(args.run), args.out, args.latents)
    print(f"{len(paths)} files, {in_bytes(sum(path.stat().st_size for path in paths))}")
    print(args.out)
    return 0

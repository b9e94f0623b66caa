"""`saelab check`: which parts of saelab work with a model, or whether an SAE fits its site."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, UsageError

if TYPE_CHECKING:
    from saelab.lm.conformance import Finding


class CheckArguments(Config):
    """Check which parts of saelab work with a language model, usually within a minute.

    The model is compared with plain transformers, its residual stream with the sum of its parts,
    and each kind of site's logit effects with a finite difference. Exits with 1 if a check fails.
    If the model lacks something, or saelab refuses something, a sentence says so; this is no
    failure.

    Of a run, it measures FVU, L0 and recovered cross-entropy on held-out text beside what the
    release of an imported SAE states, and exits with 1 if the SAE seems to be of another site.

        saelab check tiny
        saelab check runs/gemma-scope
    """

    model: Annotated[str, Positional("MODEL")]
    """`tiny`, a checkpoint directory, a name on the hub; or a run."""
    n_tokens: int = Field(default=10_000, gt=0)
    """Of a run: the held-out tokens to measure on."""
    compute_dtype: Literal["f32", "bf16", "f16", "f64"] = "f32"
    """Dtype in which the model runs; in 16 bits only large errors show."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    json_: bool = False
    """Print the findings as JSON instead of tables."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(CheckArguments, "check", arguments)
    # Both a run and a checkpoint of a model have a config.json.
    if (Path(args.model) / "provenance.json").is_file():
        return _check_run(args)
    if "n_tokens" in args.model_fields_set:
        raise UsageError(
            f"--n-tokens belongs to a run, and {args.model} is none; a model is checked on a few "
            "tokens. Leave it out."
        )
    import torch

    from saelab.analysis.attribution_check import attribution_findings
    from saelab.lm.conformance import check_model, failures

    dtypes = {"bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
    dtype = dtypes.get(args.compute_dtype, torch.float32)
    lm, findings = check_model(args.model, device=args.device, dtype=dtype)
    findings += attribution_findings(lm)
    failed = failures(findings)
    if args.json_:
        facts = lm.info.model_dump(mode="json")
        rows = [{**vars(finding), "holds": finding.holds} for finding in findings]
        print(json.dumps({"model": facts, "findings": rows, "fails": len(failed)}, indent=1))
        return 1 if failed else 0
    _print(findings)
    of = f"{lm.info.name}, {lm.info.architecture}"
    print(f"{len(failed)} of {len(findings)} checks failed: {of}" if failed else f"all hold: {of}")
    return 1 if failed else 0


def _check_run(args: CheckArguments) -> int:
    from rich.table import Table

    from saelab.cli.tables import wide_console
    from saelab.evaluation.fits import WRONG, check_fit
    from saelab.lm.load import load_recorded_model
    from saelab.training.run import Run

    run = Run(Path(args.model))
    lm = load_recorded_model(run.model(), device=args.device)
    fits = check_fit(run, lm, args.n_tokens)
    problems = [fit.problem for fit in fits if fit.problem is not None]
    if args.json_:
        rows = [vars(fit) for fit in fits]
        print(json.dumps({"run": str(run.path), "fits": rows, "fails": len(problems)}, indent=1))
        return 1 if problems else 0
    table = Table("", "here", "stated", box=None)
    for fit in fits:
        least, most = fit.stated or (0.0, 0.0)
        told = f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"
        table.add_row(fit.name, f"{fit.here:.4g}", told if fit.stated else "-")
    wide_console().print(table)
    for problem in problems:
        print(f"{problem}: {WRONG}.")
    if not problems:
        print(f"nothing is odd: {run.name} on up to {args.n_tokens} tokens of its held-out text")
    return 1 if problems else 0


def _print(findings: "list[Finding]") -> None:
    """Print a table of the sites and one of the whole model, then the reasons of refusals."""
    from rich.table import Table

    from saelab.cli.tables import wide_console

    def cell(finding: "Finding") -> str:
        if finding.error is None:
            return "no"
        size = "" if finding.tolerance == 0 else f" ({finding.error:.0e})"
        return ("yes" if finding.holds else "WRONG") + size

    sites = Table(box=None)
    about = [f for f in findings if f.about != "model"]
    checks = list(dict.fromkeys(f.check for f in about))
    for name in ("site", *checks):
        sites.add_column(name)
    for site in dict.fromkeys(f.about for f in about):
        sites.add_row(
            site, *(cell(f) for c in checks for f in about if (f.about, f.check) == (site, c))
        )
    whole = Table(box=None, show_header=False)
    for finding in findings:
        if finding.about == "model":
            whole.add_row(finding.check, cell(finding))
    console = wide_console()
    console.print(whole, sites, sep="\n\n")
    for reason in dict.fromkeys(f.refusal for f in findings if f.refusal is not None):
        console.print(f"no: {reason}", markup=False, highlight=False)

"""`saelab evaluate`: measure a trained SAE on held-out text."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from saelab.cli.parse import parse
from saelab.config import Config


class EvaluateArguments(Config):
    """Measure a trained SAE on text that no training saw.

    Reports FVU, L0 and dead latents, what splicing the reconstruction into the model costs
    (cross-entropy, KL), and, where the text has ground-truth labels, how well single latents find
    the known features. Writes evaluation/*.json in the run.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    model: str | None = None
    """The language model; default: the one the run was trained on."""
    n_tokens: int = Field(default=50_000, gt=0)
    """Held-out tokens to measure on."""
    batch_size: int = Field(default=32, gt=0)
    """Contexts per forward pass."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU where there is one."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON instead of tables."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(EvaluateArguments, "evaluate", arguments)
    # Imported here, so that --help does not wait for torch.
    from saelab.cli.tables import print_evaluation
    from saelab.evaluation.evaluate import evaluate
    from saelab.lm.load import load_recorded_model
    from saelab.training.run import Run

    run = Run(args.run)
    lm = load_recorded_model(run.model(), name=args.model, device=args.device)
    result = evaluate(run, lm, n_tokens=args.n_tokens, batch_size=args.batch_size)
    if args.json_:
        print(json.dumps(asdict(result), indent=2))
        return 0
    print_evaluation(run, result)
    print(run.path / "evaluation")
    return 0

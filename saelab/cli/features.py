"""`saelab features`: collect what each latent fires on."""

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from saelab.cli.parse import parse
from saelab.config import Config


class FeaturesArguments(Config):
    """Collect, for every latent of a run, what it fires on and what it writes to the logits.

    Writes features.h5 in the run; `saelab browse` shows it.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    model: str | None = None
    """The language model; default: the one the run was trained on."""
    n_tokens: int = Field(default=500_000, gt=0)
    """Tokens of the run's training text to read."""
    n_examples: int = Field(default=20, gt=0)
    """Examples kept of each kind (strongest, random, most negative)."""
    reach: int = Field(default=16, gt=0)
    """Tokens of context on either side of an example's peak."""
    batch_size: int = Field(default=32, gt=0)
    """Contexts per forward pass."""
    seed: int = 0
    """Decides which firings are sampled as random examples."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU where there is one."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(FeaturesArguments, "features", arguments)
    # Imported here, so that --help does not wait for torch.
    from saelab.analysis.features import FeatureOptions, collect_features
    from saelab.lm.load import load_recorded_model
    from saelab.training.run import Run

    run = Run(args.run)
    lm = load_recorded_model(run.model(), name=args.model, device=args.device)
    options = FeatureOptions(args.n_tokens, args.n_examples, args.reach, args.batch_size, args.seed)
    features = collect_features(run, lm, options)
    silent = int((features.table()["n_fired"] == 0).sum())
    print(f"{len(features)} latents, {silent} of them silent on {args.n_tokens} tokens")
    print(run.features_path)
    return 0

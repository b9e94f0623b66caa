"""`saelab features`: collect what each latent fires on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, Heading

if TYPE_CHECKING:
    from saelab.analysis.records import Features


class FeaturesArguments(Config):
    """Collect, for every latent of a run, what it fires on and what it writes to the logits.

    Writes features.h5 in the run; `saelab browse` shows it. The text is read once; sparse codes are
    kept on disk meanwhile (12 bytes per firing). After an interruption the same command continues.
    Of a set (see `saelab train sweep`), it collects for each run that has no such file yet.

        saelab features runs/topk
    """

    run: Annotated[Path, Positional("RUN")]
    """The directory of the run, or of the set."""
    model: Annotated[str | None, Heading("Text")] = None
    """The language model; default: the one that the run was trained on."""
    n_tokens: Annotated[int, Heading("Text")] = Field(default=500_000, gt=0)
    """Tokens of the run's training text to read."""
    n_examples: Annotated[int, Heading("Examples")] = Field(default=20, gt=0)
    """Examples to keep of each kind (strongest, random, most negative)."""
    n_strata: int = Field(default=5, gt=0)
    """Number of strata, parts of equal size into which a latent's firings are divided by
    |activation|."""
    n_per_stratum: int = Field(default=5, gt=0)
    """Examples to sample from each stratum."""
    n_silent: int = Field(default=5, gt=0)
    """Contexts without a firing to keep: this many near misses, and this many random ones."""
    near_miss_ranks: int = Field(default=8, ge=0)
    """Number of latents just below a token's selection that may count as near misses; 0 keeps none
    and saves a second pass of the encoder."""
    reach: int = Field(default=16, gt=0)
    """Tokens of context on each side of an example's peak."""
    batch_size: Annotated[int, Heading("Machine")] = Field(default=32, gt=0)
    """Contexts per forward pass."""
    checkpoint_every: int = Field(default=32_768, gt=0)
    """Tokens between checkpoints; an interrupted pass continues from the last checkpoint."""
    seed: Annotated[int, Heading("Examples")] = 0
    """Decides which firings and which silent contexts are sampled."""
    device: Annotated[str, Heading("Machine")] = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(FeaturesArguments, "features", arguments)
    # Imported here, so that --help does not wait for torch.
    from saelab.analysis.features import FeatureOptions, collect_features
    from saelab.analysis.features.collect import collected
    from saelab.host.host import load_model_of
    from saelab.lock import writing
    from saelab.training.sets import is_set, runs_of

    runs, whole_set = runs_of([args.run]), is_set(args.run)
    options = FeatureOptions(**args.model_dump(exclude={"run", "model", "device"}))
    lm = None
    for run in runs:
        with writing(run.path):
            features = collected(run, options) if whole_set else None
            if features is None:
                lm = lm or load_model_of(runs, name=args.model, device=args.device)
                features = collect_features(run, lm, options)
        _tell(features, f"{run.name}: " if whole_set else "")
        print(run.features_path)
    return 0


def _tell(features: "Features", name: str) -> None:
    from saelab.analysis.records import MASSIVE

    silent = int((features.table()["n_fired"] == 0).sum())
    n_tokens = features.file.facts["n_tokens"]
    print(f"{name}{len(features)} latents, {silent} of them silent on {n_tokens} tokens")
    if (kinds := features.massive) is not None and kinds.any():
        n_only = int((kinds == MASSIVE.index("only")).sum())
        print(
            f"{int((kinds > 0).sum())} fire mostly on massive activations, {n_only} of these on "
            "nothing else"
        )

"""`saelab features`: collect what each latent fires on."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, Heading, UsageError
from saelab.console import note, say, shown

if TYPE_CHECKING:
    from saelab.analysis.features import FeatureOptions
    from saelab.analysis.records import Features

MOST_SHOWN = 5
"""Examples that are printed of each chosen latent."""


class FeaturesArguments(Config):
    """Collect, for every latent of a run, what it fires on and what it writes to the logits.

    Writes features.h5 in the run; `saelab browse` shows it. The text is read once; sparse codes are
    kept on disk meanwhile (12 bytes per firing). After an interruption the same command continues.
    Of a set (see `saelab train sweep`), it collects for each run that has no such file yet.

    With --latents, it collects for these alone, prints what it found, and adds them to
    chosen_features.h5: of an SAE too wide to be read whole, too. Latents of that file are collected
    again with these options; delete the file to leave them out.

        saelab features runs/topk
        saelab features runs/wide --latents 1 5 7
    """

    run: Annotated[Path, Positional("RUN")]
    """The directory of the run, or of the set."""
    latents: Annotated[tuple[int, ...], Heading("Examples")] = ()
    """Collect for these latents, and those chosen before, alone; default: for all."""
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
    """Number of latents just below a token's selection that may count as near misses; 0 keeps
    none."""
    reach: int = Field(default=16, gt=0)
    """Tokens of context on each side of an example's peak."""
    batch_size: Annotated[int | None, Heading("Machine")] = Field(default=None, gt=0)
    """Contexts per forward pass; default: 32, and on a GPU those of 32,768 positions if they are
    more."""
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
    chosen = {"run", "model", "device", "latents"}
    options = FeatureOptions(**args.model_dump(exclude=chosen))
    if args.latents:
        return _chosen(args, options)
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


def _chosen(args: FeaturesArguments, options: "FeatureOptions") -> int:
    """Collect for some latents, and print what they fire on."""
    from saelab.analysis.features.collect import check_latents, collect_chosen
    from saelab.analysis.records import Features
    from saelab.host.host import load_model_of
    from saelab.training.run import Run
    from saelab.training.run_paths import CHOSEN_FEATURES
    from saelab.training.sets import is_set

    if is_set(args.run):
        raise UsageError("Latents are those of one run: leave out --latents, or name a run.")
    run = Run(args.run)
    latents = check_latents(run, args.latents)
    before: Sequence[int] = ()
    if (path := run.path / CHOSEN_FEATURES).is_file():
        try:
            before = check_latents(run, Features(run.path, chosen=True).latents)
        except UsageError as error:
            note(f"the latents chosen before are lost. {error}")
    if kept := [latent for latent in before if latent not in latents]:
        say(f"{path} has {len(kept)} other latents; they are collected again with these.")
    lm = load_model_of([run], name=args.model, device=args.device)
    features = collect_chosen(run, lm, [*latents, *kept], options)
    for latent in latents:
        for line in _told(features, latent):
            print(line)
    print(features.file.path)
    return 0


def _told(features: "Features", latent: int) -> Iterator[str]:
    """What is printed of a latent: figures, what it fires on, its strongest examples."""
    record, gap = features[latent], features.file.table.gap
    yield f"latent {record.latent}: {record.n_fired} firings on {record.n_tokens} tokens" + (
        f", maximum {record.max:.4g}" if record.n_fired else ""
    )
    if fires_on := features.fires_on(latent):
        yield f"  {shown(fires_on)}"
    kind = "negative" if 2 * record.n_negative > record.n_fired else "top"
    for example in record.examples[kind][:MOST_SHOWN]:
        texts, peak = [token.text for token in example.tokens], example.peak
        before, after = (shown(gap.join(part)) for part in (texts[:peak], texts[peak + 1 :]))
        line = gap.join(part for part in (before, f"[{shown(texts[peak])}]", after) if part)
        yield f"  {example.value:8.4g}  {line}"


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

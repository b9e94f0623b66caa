"""Which runs there are, and the figures that tell them apart."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from saelab.config import UsageError
from saelab.training.run import Run, run_name

FOUND = 0.8
"""A known feature is found if some latent reaches this F1."""
SIGNED = {"abs-topk"}
"""Variants whose codes have both signs by their definition."""


@dataclass(frozen=True)
class RunCard:
    """One run's identity and figures; None where it was not evaluated.

    Attributes:
        name: the path below the directory of runs; what `?run=` says.
        l0: latents active per token, on average.
        fvu: fraction of variance unexplained, on held-out text.
        ce_recovered: share of the cross-entropy kept when the reconstruction is spliced in.
        dead: latents that never fired on the held-out text.
        config: the complete training configuration.
        n_known, found: known features of its text, and those that a latent finds.
        corpus: what names the text it was trained on; None for arrays.
        problems: evaluations that could not be read.
    """

    name: str
    path: Path
    variant: str
    model: str
    site: str
    d_sae: int
    n_tokens: int
    config: dict[str, Any]
    l0: float | None = None
    fvu: float | None = None
    ce_recovered: float | None = None
    dead: int | None = None
    n_known: int = 0
    found: int | None = None
    corpus: dict[str, Any] | None = None
    problems: tuple[str, ...] = ()

    @property
    def signed(self) -> bool:
        """Whether codes have both signs, so that a decoder row and its opposite are one."""
        return self.variant in SIGNED

    @property
    def own_name(self) -> str:
        """What the run calls itself; unlike `name`, others elsewhere may have it, too."""
        return run_name(self.path)

    @property
    def weights_path(self) -> Path:
        """Where the trained SAE is."""
        return self.path / "weights.safetensors"

    @property
    def features_path(self) -> Path:
        """Where its features are, once collected."""
        return self.path / "features.h5"


@dataclass(frozen=True)
class Catalogue:
    """The finished runs below a directory, and why others could not be read."""

    root: Path
    runs: dict[str, RunCard] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_catalogue(root: Path) -> Catalogue:
    """Every finished run at or below `root`. A damaged one is reported, not fatal to the rest."""
    catalogue = Catalogue(root)
    for config in sorted(root.rglob("config.json")):
        if not (config.parent / "weights.safetensors").is_file():
            continue
        try:
            card = _kept_card(config.parent, root, _stamps(config.parent))
        except UsageError as error:
            catalogue.problems.append(str(error))
        else:
            catalogue.runs[card.name] = card
    return catalogue


def _stamps(path: Path) -> tuple[tuple[str, int], ...]:
    """When the files that a card is read from were last changed."""
    files = [path / "config.json", path / "provenance.json", *path.glob("evaluation/*.json")]
    return tuple((file.name, file.stat().st_mtime_ns) for file in files if file.is_file())


@lru_cache(maxsize=1024)
def _kept_card(path: Path, root: Path, stamps: tuple[tuple[str, int], ...]) -> RunCard:
    """The card, read again only if a file of it has changed: evaluations may hold megabytes."""
    del stamps  # part of the cache's key only
    return read_card(path, root)


def read_card(path: Path, root: Path) -> RunCard:
    """The card of the run at `path`."""
    run = Run(path)
    problems: list[str] = []
    reconstruction = _evaluation(run, "reconstruction", problems)
    downstream = _evaluation(run, "downstream", problems)
    scores = _scores(_evaluation(run, "recovery", problems))
    provenance = run.provenance()
    model, corpus = provenance.get("model"), provenance.get("corpus")
    return RunCard(
        name=path.relative_to(root).as_posix() if path != root else root.resolve().name,
        path=path,
        variant=str(_option(run, "sae", "variant")),
        model=str(model["name"]) if isinstance(model, dict) and "name" in model else "own arrays",
        site=str(_option(run, "site")),
        d_sae=int(_option(run, "sae", "d_sae")),
        n_tokens=int(_option(run, "n_tokens")),
        config=run.options,
        l0=reconstruction.get("l0"),
        fvu=reconstruction.get("fvu"),
        ce_recovered=downstream.get("ce_recovered"),
        dead=reconstruction.get("dead"),
        n_known=len(scores),
        found=sum(score >= FOUND for score in scores) if scores else None,
        corpus=corpus if isinstance(corpus, dict) else None,
        problems=tuple(problems),
    )


def _evaluation(run: Run, name: str, problems: list[str]) -> dict[str, Any]:
    """A saved evaluation; empty if there is none or, with a word to `problems`, it is damaged."""
    try:
        values = run.evaluation(name)
    except UsageError as error:
        problems.append(str(error))
        return {}
    return values if isinstance(values, dict) else {}


def _scores(recovery: dict[str, Any]) -> list[float]:
    """The F1 of every known feature's best latent, as far as the file says."""
    features = recovery.get("features")
    rows = features if isinstance(features, list) else []
    return [float(row["f1"]) for row in rows if isinstance(row, dict) and "f1" in row]


def _option(run: Run, *names: str) -> Any:  # noqa: ANN401 - any JSON value
    value: Any = run.options
    for name in names:
        if not isinstance(value, dict) or name not in value:
            raise UsageError(f"{run.path / 'config.json'} has no {'.'.join(names)}.")
        value = value[name]
    return value

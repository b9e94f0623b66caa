"""The list of runs, with the figures that distinguish them."""

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from feature_browser.data.growing import GrowingRun, read_growing
from feature_browser.data.origin import Origin, origin_of
from feature_browser.data.run_values import (
    count_of,
    evaluation_of,
    figure_of,
    option_of,
    scores_of,
    whole,
)
from saelab.analysis.records import Features, features_file
from saelab.config import UsageError
from saelab.sites import parts_of, place_of
from saelab.training.find import run_directories
from saelab.training.run import Run
from saelab.training.run_paths import run_name

FOUND = 0.8
"""A known feature is found if some latent reaches this F1."""
OWN_ARRAYS = "own arrays"
"""Stands for the model of a run that was trained on arrays."""


@dataclass(frozen=True)
class RunCard:
    """One run's identity and figures; None for figures that were not measured.

    Attributes:
        name: the path below the directory of runs; the value of `?run=`.
        l0: latents active per token, on average.
        fvu: fraction of variance unexplained, on held-out text.
        ce_recovered: share of the cross-entropy kept when the reconstruction is spliced in.
        silent: latents that never fired on the held-out text of the evaluation.
        config: the complete training configuration.
        n_known, found: number of known features of its text, and of those that a latent finds.
        corpus: the name of the training text; None for arrays.
        origin: where an imported SAE came from; None of a run that was trained.
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
    silent: int | None = None
    n_known: int = 0
    found: int | None = None
    corpus: dict[str, Any] | None = None
    origin: Origin | None = None
    problems: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """Tells two cards apart; for caches, which ask often."""
        return hashlib.sha256(repr(self).encode(errors="surrogateescape")).hexdigest()

    @cached_property
    def dead(self) -> int | None:
        """Latents that never fired on the tokens that its features were collected from.

        Without features, `silent`; None if neither is known.
        """
        if not self.features_path.is_file():
            return self.silent
        try:
            return int(np.count_nonzero(Features(self.path).table()["n_fired"] == 0))
        except UsageError:
            return self.silent

    @property
    def signed(self) -> bool:
        """Whether codes have both signs, so that a decoder row and its opposite are equivalent.

        The variant decides this, which needs torch; a variant that is not installed counts as
        unsigned.
        """
        try:
            return Run(self.path).config.sae.sparsity.signed
        except UsageError:
            return False

    @property
    def has_forms(self) -> bool:
        """Whether latents are quadratic forms without decoder rows; the variant decides this."""
        try:
            self.check_decoder()
        except UsageError:
            return True
        return False

    @property
    def n_sites(self) -> int:
        """How many sites it reads."""
        return len(parts_of(self.site))

    @property
    def in_circuits(self) -> bool:
        """Whether circuits can have its latents, as far as its sites and its model say."""
        writes = self.config.get("target_site")
        ends = parts_of(self.site), parts_of(writes if isinstance(writes, str) else self.site)
        places = [place_of(*pair) for pair in zip(*ends, strict=False)]
        # Latents that reconstruct several sites at once write before and after what they read.
        crossed = len(ends[0]) > 1 and not isinstance(writes, str)
        matched = len(ends[0]) == len(ends[1]) and all(places)
        return self.model != OWN_ARRAYS and matched and not crossed

    def check_decoder(self) -> None:
        """Refuse a run whose latents have no decoder rows; unknown variants pass.

        Raises:
            UsageError: says why.
        """
        try:
            sae = Run(self.path).config.sae
        except UsageError:
            return
        # The variant decides this, which needs torch.
        from saelab.sae.decoder import check_decoder

        check_decoder(sae)

    @property
    def own_name(self) -> str:
        """The run's own name; unlike `name`, other runs may have it too."""
        return run_name(self.path)

    @property
    def weights_path(self) -> Path:
        """Path of the trained SAE."""
        return self.path / "weights.safetensors"

    @property
    def features_path(self) -> Path:
        """Path of the features of all its latents, once collected."""
        return self.path / "features.h5"

    @property
    def evidence_path(self) -> Path:
        """Path of its features: of all latents, or where that is missing, of the chosen ones."""
        return features_file(self.path)

    @property
    def of_chosen(self) -> bool:
        """Whether it has the features of chosen latents alone."""
        return self.evidence_path != self.features_path


def key_of(card: RunCard) -> str:
    """What stands for a card in the key of a cache."""
    return card.key


@dataclass(frozen=True)
class Catalogue:
    """The finished runs below a directory.

    Attributes:
        growing: runs that are in training, or were left unfinished, by name.
        damaged: the reason why other runs cannot be shown, by name.
        problems: what was not searched, and why.
    """

    root: Path
    runs: dict[str, RunCard] = field(default_factory=dict)
    growing: dict[str, GrowingRun] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def first(self) -> RunCard | None:
        """The run that is shown where none is named: the first with features, else the first."""
        ranked = sorted(self.runs.values(), key=lambda run: not run.features_path.is_file())
        return ranked[0] if ranked else None


def read_catalogue(root: Path) -> Catalogue:
    """Every finished run at or below `root`; unreadable ones are reported and skipped."""
    catalogue = Catalogue(root)
    for path in run_directories(root, catalogue.problems):
        name = _name(path, root)
        try:
            catalogue.runs[name] = _kept_card(path, root, _stamps(path))
        except UsageError as error:
            growing = read_growing(path, name)
            if growing is None:
                catalogue.damaged[name] = str(error)
            else:
                catalogue.growing[name] = growing
    return catalogue


def _name(path: Path, root: Path) -> str:
    """The run's name; bytes that are not UTF-8, which a directory's name may have, are replaced."""
    name = path.relative_to(root).as_posix() if path != root else root.resolve().name
    return os.fsencode(name).decode(errors="replace")


def _stamps(path: Path) -> tuple[tuple[str, int], ...]:
    """When the files behind a card were last changed."""
    names = ("config.json", "provenance.json", "weights.safetensors", "features.h5")
    own = (path / name for name in names)
    files = [*own, *path.glob("evaluation/*.json")]
    return tuple((file.name, file.stat().st_mtime_ns) for file in files if file.is_file())


@lru_cache(maxsize=1024)
def _kept_card(path: Path, root: Path, stamps: tuple[tuple[str, int], ...]) -> RunCard:
    """The card, read again only if one of its files changed: evaluations may take megabytes."""
    del stamps  # part of the cache's key only
    return read_card(path, root)


def read_card(path: Path, root: Path) -> RunCard:
    """The card of the run at `path`.

    Raises:
        UsageError: it is no run, its name cannot be part of an address, or its configuration,
            provenance or weights are damaged.
    """
    if os.fsencode(path) != str(path).encode(errors="replace"):
        raise UsageError(f"{_name(path, root)} is no name in UTF-8; rename the run.")
    run = Run(path)
    run.check_finished()
    problems: list[str] = []
    reconstruction = evaluation_of(run, "reconstruction", problems)
    downstream = evaluation_of(run, "downstream", problems)
    scores = scores_of(evaluation_of(run, "recovery", problems))
    provenance = run.provenance()
    model, corpus = provenance.get("model"), provenance.get("corpus")
    return RunCard(
        name=_name(path, root),
        path=path,
        variant=str(option_of(run, "sae", "variant")),
        model=str(model["name"]) if isinstance(model, dict) and "name" in model else OWN_ARRAYS,
        site=str(option_of(run, "site")),
        d_sae=count_of(run, 1, "sae", "d_sae"),
        n_tokens=count_of(run, 0, "n_tokens"),
        config=run.options,
        l0=figure_of(reconstruction, "l0"),
        fvu=figure_of(reconstruction, "fvu"),
        ce_recovered=figure_of(downstream, "ce_recovered"),
        silent=whole(reconstruction.get("dead")),
        n_known=len(scores),
        found=sum(score >= FOUND for score in scores) if scores else None,
        corpus=corpus if isinstance(corpus, dict) else None,
        origin=origin_of(provenance),
        problems=tuple(problems),
    )


def latent_number(text: str | None, n_latents: int) -> int | None:
    """The latent that `text` names, or None if there is no such latent."""
    # isdecimal also accepts other scripts' digits, and so does int.
    if text is None or not text.strip().isdecimal():
        return None
    number = int(text)
    return number if number < n_latents else None

"""The run whose SAE a training starts from, instead of random weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.config import UsageError
from saelab.files import sha256_file
from saelab.sae.base import AbstractSAE
from saelab.sae.start import start_from
from saelab.training.config import TrainConfig
from saelab.training.run import IDENTITY, Run
from saelab.training.source import Source
from saelab.training.untrained import untrained_sae


@dataclass(frozen=True)
class StartingRun:
    """A finished run to start from.

    Attributes:
        sha256: digest of its weights.
    """

    run: Run
    sha256: str

    @classmethod
    def of(cls, config: TrainConfig) -> "StartingRun | None":
        """The run that `config` starts from; None for random weights.

        Raises:
            UsageError: the run does not exist or has no weights.
        """
        if config.init_from is None:
            return None
        if not (config.init_from / "config.json").is_file():
            raise UsageError(
                f"--init-from {config.init_from} is not a run; `saelab import` makes one of an SAE "
                "that another tool trained."
            )
        run = Run(config.init_from)
        if not run.finished:
            raise UsageError(f"--init-from {run.path} has no weights yet; let it finish first.")
        return cls(run, sha256_file(run.weights))

    def sae(self) -> AbstractSAE:
        """Its SAE, which reads raw activations; a new copy, which may be changed."""
        return self.run.load_sae()

    def check(self, config: TrainConfig, source: Source) -> None:
        """Refuse weights that do not fit `config`, before any work.

        Raises:
            UsageError: widths, numbers of latents, or kinds of weights differ.
        """
        sae = untrained_sae(config, source.site.d_in, source.target.d_in, source.widths)
        try:
            start_from(sae, self.sae(), source.start_rows()[:1])
        except UsageError as error:
            raise UsageError(f"--init-from {self.run.path}: {error}") from error

    def facts(self) -> dict[str, Any]:
        """What provenance.json keeps."""
        options, record = self.run.options, self.run.provenance()
        return {
            "path": str(self.run.path),
            "weights_sha256": self.sha256,
            "sae": options["sae"],
            "site": options["site"],
            "target_site": options.get("target_site"),
            "n_tokens": options["n_tokens"],
            "model": record.get("model"),
            "domain": self.run.domain.facts(),
            "imported_from": record.get("imported_from"),
        }

    def sentence(self, config: TrainConfig, source: Source) -> str:
        """Where the weights come from, and which options differ from the origin's."""
        facts, sae = self.facts(), self.run.options["sae"]
        here = _trained_on(config.site, config.written_site, source.store.manifest.model)
        there = _trained_on(facts["site"], facts["target_site"] or facts["site"], facts["model"])
        said = f"Starts from {self.run.path}, a {sae['variant']} SAE of {there}"
        changes = [f"here it is {here}"] if here != there else []
        if _identity(facts["model"]) != _identity(source.store.manifest.model) and here == there:
            changes.append("the model of that name has other weights here")
        domain = source.selection.domain.facts()
        changes += [
            f"{name} was {old} there and is {domain[name]} here"
            for name, old in facts["domain"].items()
            if domain[name] != old
        ]
        return "; ".join([said, *changes]) + "."


def has_begun(directory: Path) -> bool:
    """Whether the training at `directory` has a checkpoint, and so needs no weights to start."""
    return any(directory.glob("checkpoints/step_*"))


def check_start(config: TrainConfig, directory: Path, source: Source) -> None:
    """Check what `config` starts from, before any work, unless its training has begun.

    Raises:
        UsageError: the run does not exist, its weights do not fit, or they have changed since the
            run at `directory` was begun.
    """
    if has_begun(directory) or (origin := StartingRun.of(config)) is None:
        return
    if (directory / "provenance.json").is_file():
        begun = (Run(directory).provenance().get("init_from") or {}).get("weights_sha256")
        if begun is not None and begun != origin.sha256:
            raise UsageError(
                f"{origin.run.path} has other weights than {directory} was begun with; choose "
                "another --out."
            )
    origin.check(config, source)


def _trained_on(site: str, written: str, model: Any) -> str:  # noqa: ANN401 - any JSON value
    reads = site if site == written else f"{site} to {written}"
    return f"{reads} of {model['name'] if isinstance(model, dict) else 'own arrays'}"


def _identity(model: Any) -> list[Any] | None:  # noqa: ANN401 - any JSON value
    return [model.get(field) for field in IDENTITY] if isinstance(model, dict) else None

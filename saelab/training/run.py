"""A run directory: what one training wrote, and the one way to read it.

config.json          the complete TrainConfig
provenance.json      versions, device, command, digests of the activations and of the model
weights.safetensors  the trained SAE
checkpoints/step_N/  where an interrupted training continues, and a finished one that is made longer
metrics.jsonl        one line per logged step
evaluation/*.json    what `saelab evaluate` measured
evaluation/*/*.json  what it measured on texts of one's choice
features.h5          what `saelab features` collected
steering.h5          what `saelab steer --all` scored
circuits/            graphs that `saelab circuit` wrote
notes.sqlite         labels, notes and bookmarks from the browser
experiments/*.json   steering experiments saved in the browser
features.partial/    where an interrupted collection continues (removed when it ends)
kept/tokens_N/       runs of the SAE as it was after N tokens
ema/                 a run of the SAE whose weights are their average over training
"""

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.config import UsageError, read_config
from saelab.files import atomic_write_json

if TYPE_CHECKING:
    from saelab.sae.base import AbstractSAE
    from saelab.training.config import TrainConfig
    from saelab.training.domain import Domain

IDENTITY = ("name", "weights_digest", "tokenizer_digest")
"""What tells one language model from another."""
KEPT = "kept"
TOKENS = "tokens_"
AVERAGED = "ema"
"""Where a run has the average of its weights over training, as a run of its own."""


class Run:
    """The directory of one trained SAE; what is missing is said in one sentence.

    Only `config`, `domain` and `load_sae` import torch, so that a browser of runs starts at once.

    Attributes:
        path: the directory.
        options: what config.json says, as plain JSON values.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise UsageError(f"{self.path} is not a run: it has no config.json.")
        self.options = self._json(self.path / "config.json")

    @cached_property
    def config(self) -> "TrainConfig":
        """The complete configuration.

        Raises:
            UsageError: config.json is not one of this version.
        """
        from saelab.training.config import TrainConfig

        config = read_config(TrainConfig, self.path / "config.json")
        # A run from before there was a choice was trained on every row.
        return config if "outliers" in self.options else config.with_every_row()

    @cached_property
    def domain(self) -> "Domain":
        """Where the SAE applies; everything that runs it on activations asks this.

        Raises:
            UsageError: provenance.json cannot be read.
        """
        from saelab.training.domain import read_domain

        return read_domain(self.provenance())

    @property
    def name(self) -> str:
        """The directory's name; of one below another run, RUN@TOKENS or RUN@ema."""
        return run_name(self.path)

    @property
    def weights(self) -> Path:
        """Where the trained SAE is."""
        return self.path / "weights.safetensors"

    @property
    def features_path(self) -> Path:
        """Where the features are, once collected."""
        return self.path / "features.h5"

    @property
    def finished(self) -> bool:
        """Whether training reached its end."""
        return self.weights.is_file()

    def load_sae(self, device: str = "cpu") -> "AbstractSAE":
        """The trained SAE.

        Raises:
            UsageError: training has not finished, or the file is damaged.
        """
        if not self.finished:
            raise UsageError(f"{self.path} has no weights yet; run its `saelab train` again.")
        from saelab.sae.storage import load_sae

        return load_sae(self.weights, device)

    def provenance(self) -> dict[str, Any]:
        """What produced the run."""
        return self._json(self.path / "provenance.json")

    def model(self) -> dict[str, Any]:
        """What identifies the language model whose activations the run was trained on.

        Raises:
            UsageError: the run was trained on arrays, or does not say which model it was.
        """
        model = self.provenance().get("model")
        if model is None:
            raise UsageError(f"{self.path} was trained on arrays, not on a language model.")
        if not isinstance(model, dict) or any(field not in model for field in IDENTITY):
            raise UsageError(
                f"{self.path / 'provenance.json'} does not say which language model this is; it "
                f"needs {', '.join(IDENTITY)}."
            )
        return model

    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps, oldest first."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    def evaluation(self, name: str, *, text: str | None = None) -> dict[str, Any] | None:
        """A saved evaluation, of another text where one is named; None if it was not made."""
        path = self._evaluation(name, text)
        return self._json(path) if path.is_file() else None

    def save_evaluation(
        self, name: str, values: dict[str, Any], *, text: str | None = None
    ) -> Path:
        """Write an evaluation beside the others; returns its path."""
        path = self._evaluation(name, text)
        atomic_write_json(path, values)
        return path

    def _evaluation(self, name: str, text: str | None) -> Path:
        directory = self.path / "evaluation"
        return (directory if text is None else directory / text) / f"{name}.json"

    @staticmethod
    def _json(path: Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_bytes())
        except (OSError, json.JSONDecodeError) as error:
            raise UsageError(f"{path} cannot be read: {error}.") from error


def kept_at(path: Path, n_tokens: int) -> Path:
    """Where the run at `path` keeps the SAE that it was after so many tokens."""
    return path / KEPT / f"{TOKENS}{n_tokens:012d}"


def run_name(path: Path) -> str:
    """See `Run.name`."""
    tokens = path.name.removeprefix(TOKENS)
    if path.parent.name == KEPT and tokens.isdecimal():
        return f"{path.parent.parent.name}@{int(tokens)}"
    if path.name == AVERAGED and (path.parent / "config.json").is_file():
        return f"{run_name(path.parent)}@{AVERAGED}"
    return path.name


def find_runs(root: Path) -> list[Run]:
    """Every finished run at or below `root`, sorted by path."""
    return [
        Run(config.parent)
        for config in sorted(root.rglob("config.json"))
        if (config.parent / "weights.safetensors").is_file()
    ]

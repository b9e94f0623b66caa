"""A run directory: what one training wrote, and the one way to read it.

config.json          the complete TrainConfig
provenance.json      versions, device, command, digests of the activations and of the model
weights.safetensors  the trained SAE
checkpoints/         the last two of an interrupted training, the last of a finished one
metrics.jsonl        one line per logged step
tensorboard/, wandb/ the same lines, where `--log` asked for them; wandb.json has the id there
evaluation/*.json    what `saelab evaluate` measured
evaluation/*/*.json  what it measured on texts that you chose, and with other encoders
features.h5          what `saelab features` collected
chosen_features.h5   what `saelab features --latents` has collected
steering.h5          what `saelab steer --all` scored
sharing.h5           what `saelab diff` measured of a crosscoder
transport/           what `saelab transport` measured, a file for each pair of sites
circuits/            graphs that `saelab circuit` wrote
explanations/        what language models say of latents, a directory for each set, and its scores
notes.sqlite         labels, notes and bookmarks from the browser
experiments/*.json   steering experiments saved in the browser
features.partial/    where an interrupted collection continues (removed when it ends)
writer.lock          names the process that writes the run, while one does
kept/tokens_N/       runs of the SAE as it was after N tokens
ema/                 a run of the SAE whose weights are their average over training

Every JSON object carries its own checksum (`saelab/formats/json_file.py`), and so do weights and
HDF5 files; `saelab verify RUN` checks them all. Older runs without checksums are read unchecked.
"""

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.config import UsageError
from saelab.formats.json_file import (
    MAX_CONFIG_BYTES,
    parse_json,
    read_config,
    read_sealed_json,
    write_sealed_json,
)
from saelab.formats.regular import read_regular
from saelab.lm.recorded import name_now
from saelab.lock import RUN_LOCK, check_held
from saelab.moved import beside, now_at, remedy
from saelab.owner import named, read_owner, runs
from saelab.training.run_paths import CHOSEN_FEATURES, FEATURES, WEIGHTS, check_run, run_name

if TYPE_CHECKING:
    from saelab.sae.base import AbstractSAE
    from saelab.training.config import TrainConfig
    from saelab.training.domain import Domain

IDENTITY = ("name", "weights_digest", "tokenizer_digest")
"""The facts that identify a language model."""
RESULTS = (
    "evaluation",
    FEATURES,
    "features.partial",
    CHOSEN_FEATURES,
    "chosen_features.partial",
    "steering.h5",
    "transport",
    "sharing.h5",
    "circuits",
    "explanations",
    "experiments",
)
"""Results about one set of weights; they do not hold for other weights."""
MAX_METRICS_BYTES = 2**28


class Run:
    """The directory of one trained SAE; methods raise UsageError for missing or damaged files.

    Only `config`, `domain` and `load_sae` import torch, so that listing runs is fast.

    Attributes:
        path: the directory.
        options: the content of config.json, as plain JSON values.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_run(self.path)
        self.options = read_sealed_json(self.path / "config.json", most=MAX_CONFIG_BYTES)

    @cached_property
    def config(self) -> "TrainConfig":
        """The complete configuration.

        Raises:
            UsageError: this version cannot read config.json.
        """
        from saelab.training.config import TrainConfig

        config = read_config(TrainConfig, self.path / "config.json")
        # A run without the option was trained on every row.
        return config if "outliers" in self.options else config.with_every_row()

    @cached_property
    def domain(self) -> "Domain":
        """Where the SAE applies; everything that runs it on activations reads this.

        Raises:
            UsageError: provenance.json cannot be read.
        """
        from saelab.training.domain import read_domain

        return read_domain(self.provenance())

    @property
    def name(self) -> str:
        """The directory's name; for a run inside another run, RUN@TOKENS or RUN@ema."""
        return run_name(self.path)

    @property
    def weights(self) -> Path:
        """Path of the trained SAE."""
        return self.path / WEIGHTS

    @property
    def weights_sha256(self) -> str:
        """What tells these weights from others; see `identity_of`."""
        # Imported here, so that --help does not wait for numpy.
        from saelab.formats.tensor_header import identity_of

        return identity_of(self.weights)

    @property
    def features_path(self) -> Path:
        """Path of the collected features."""
        return self.path / FEATURES

    @property
    def finished(self) -> bool:
        """Whether training reached its end."""
        return self.weights.is_file()

    def check_finished(self) -> None:
        """Refuse a run without weights.

        Raises:
            UsageError: training has not reached its end, or the weights are gone.
        """
        if self.finished:
            return
        if os.path.lexists(self.weights):
            raise UsageError(f"{self.weights} is not a file.")
        made = self.made_with_weights
        owner = read_owner(self.path / RUN_LOCK)
        if not made and owner and runs(owner) is not False:
            raise UsageError(f"{self.path} is being trained by {named(owner)}.")
        if not made:
            raise UsageError(f"{self.path} has no weights yet; run its `saelab train` again.")
        raise UsageError(
            f"{self.path} has no weights any more, with which its {made} was made; copy {WEIGHTS} "
            "back, or run its `saelab train` again."
        )

    @property
    def made_with_weights(self) -> str | None:
        """A result that the run has, which no run has before its weights; None if there is none."""
        return next((name for name in RESULTS if (self.path / name).exists()), None)

    def load_sae(self, device: str = "cpu") -> "AbstractSAE":
        """The trained SAE.

        Raises:
            UsageError: there are no weights, or the file is damaged.
        """
        self.check_finished()
        from saelab.sae.storage import load_sae

        return load_sae(self.weights, device)

    def provenance(self) -> dict[str, Any]:
        """What produced the run.

        Raises:
            UsageError: provenance.json is missing, damaged, or does not name the model and text of
                the activations (null for arrays).
        """
        path = self.path / "provenance.json"
        record = read_sealed_json(path)
        for name in ("model", "corpus"):
            if name not in record or not (record[name] is None or isinstance(record[name], dict)):
                raise UsageError(f"{path} does not say of which {name} the activations are.")
        return record

    @property
    def context_length(self) -> int:
        """Number of tokens per context of the text that the run was trained on.

        Raises:
            UsageError: provenance.json does not give it.
        """
        length = self.provenance().get("context_length")
        if type(length) is not int or length < 1:
            raise UsageError(f"{self.path / 'provenance.json'} says no context_length.")
        return length

    @property
    def on_arrays(self) -> bool:
        """Whether the SAE was trained on your own arrays, without a language model."""
        return self.provenance().get("model") is None

    def model(self) -> dict[str, Any]:
        """The facts that identify the language model of the run's activations.

        `name` is where the model is now, if it was found elsewhere (see `saelab.lm.recorded`).

        Raises:
            UsageError: the run was trained on arrays, or provenance.json does not name the model.
        """
        model = self.provenance().get("model")
        if model is None:
            raise UsageError(f"{self.path} was trained on arrays, not on a language model.")
        if not isinstance(model, dict) or any(field not in model for field in IDENTITY):
            raise UsageError(
                f"{self.path / 'provenance.json'} does not say which language model this is; it "
                f"needs {', '.join(IDENTITY)}."
            )
        return model | {"name": name_now(model, beside(self.path))}

    def config_now(self) -> "TrainConfig":
        """The configuration, with the store where it is now.

        Raises:
            UsageError: as for `config` and `store_path`.
        """
        return self.config.model_copy(update={"activations": self.store_path()})

    def store_path(self) -> Path:
        """Where the store of the run's activations is now.

        Raises:
            UsageError: it is nowhere, or what is there instead has other activations.
        """
        recorded = Path(self.options["activations"])
        found = now_at(recorded, beside(self.path))
        if found is None:
            raise UsageError(
                f"{recorded}, the store that {self.path} was trained on, is not there; {remedy()}."
            )
        if found != recorded:
            from saelab.activations.format import read_manifest

            if read_manifest(found).content_digest != self.provenance().get("activations"):
                raise UsageError(
                    f"{recorded}, the store that {self.path} was trained on, is not there, and "
                    f"{found} has other activations; {remedy()}."
                )
        return found

    def metrics(self, *, growing: bool = False) -> list[dict[str, Any]]:
        """The logged steps, oldest first; of a `growing` log without a last line in the making.

        Raises:
            UsageError: a line is damaged.
        """
        path = self.path / "metrics.jsonl"
        text = read_regular(path, most=MAX_METRICS_BYTES) if path.is_file() else b""
        lines = text.splitlines()
        if growing and not text.endswith(b"\n"):
            lines = lines[:-1]
        return [_metrics_line(line, f"Line {n} of {path}") for n, line in enumerate(lines, 1)]

    def evaluation(self, name: str, *, text: str | None = None) -> dict[str, Any] | None:
        """A saved evaluation, on another text if one is named; None if there is none.

        Raises:
            UsageError: the file is damaged.
        """
        path = self._evaluation(name, text)
        return read_sealed_json(path) if os.path.lexists(path) else None

    def save_evaluation(
        self, name: str, values: dict[str, Any], *, text: str | None = None
    ) -> Path:
        """Write an evaluation into the run; returns its path."""
        path = self._evaluation(name, text)
        check_held(self.path)
        write_sealed_json(path, values)
        return path

    def _evaluation(self, name: str, text: str | None) -> Path:
        directory = self.path / "evaluation"
        return (directory if text is None else directory / text) / f"{name}.json"


def _metrics_line(raw: bytes, where: str) -> dict[str, Any]:
    values = parse_json(raw, where)
    if not isinstance(values, dict):
        raise UsageError(f"{where} is not a JSON object.")
    return values

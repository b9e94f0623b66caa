"""What a run's evaluation says of known features, from the latents' side and from the features'."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from saelab.config import UsageError, first_problem
from saelab.formats.json_file import read_sealed_json


@dataclass(frozen=True)
class Match:
    """The known feature that a latent finds best.

    Attributes:
        f1, auroc: of this latent, on text it was not chosen on.
        feature: the feature's own entry, with its best latent and its probe.
    """

    label: str
    f1: float
    auroc: float
    feature: dict[str, Any]

    @property
    def title(self) -> str:
        """The label in words."""
        return plain(self.label)


@dataclass(frozen=True)
class Known:
    """All known features of a run's text, and each latent's best match."""

    features: list[dict[str, Any]]
    too_rare: list[str]
    matches: dict[int, Match]


NOTHING = Known([], [], {})


def plain(label: str) -> str:
    """A label as words: `name_female` reads "name female"."""
    return label.replace("_", " ")


class _Feature(BaseModel, extra="allow", allow_inf_nan=False):
    """One row of `features`, as far as pages use it."""

    label: str
    latent: int = Field(ge=0, lt=1 << 32)
    sign: int
    frequency: float
    f1: float
    precision: float
    recall: float
    auroc: float
    probe_auroc: float
    probe_f1: float


class _Latents(BaseModel, allow_inf_nan=False):
    label: list[str | None]
    f1: list[float]
    auroc: list[float]


class _RecoveryFile(BaseModel):
    features: list[_Feature]
    too_rare: list[str]
    latents: _Latents | None = None


def read_known(path: Path) -> Known:
    """What `evaluation/recovery.json` holds.

    Raises:
        UsageError: the file is damaged.
    """
    values = read_sealed_json(path)
    try:
        _RecoveryFile.model_validate(values, strict=True)
        by_label = {feature["label"]: feature for feature in values["features"]}
        return Known(values["features"], values["too_rare"], _matches(values, by_label))
    except ValidationError as error:
        reason = first_problem(error)
    except (ValueError, LookupError) as error:
        reason = repr(error)
    raise UsageError(f"{path} cannot be read ({reason}); run `saelab evaluate` again.")


def _matches(values: dict[str, Any], by_label: dict[str, dict[str, Any]]) -> dict[int, Match]:
    if values.get("latents") is None:
        # Files without the latents' side still say which latent is best for each feature.
        rising = sorted(by_label.values(), key=lambda feature: feature["f1"])
        return {f["latent"]: Match(f["label"], f["f1"], f["auroc"], f) for f in rising}
    sides = values["latents"]
    rows = zip(sides["label"], sides["f1"], sides["auroc"], strict=True)
    return {
        latent: Match(label, f1, auroc, by_label[label])
        for latent, (label, f1, auroc) in enumerate(rows)
        if label is not None
    }

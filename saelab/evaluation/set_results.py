"""What was measured of a set of runs: its file and its tables."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saelab.evaluation.measurement import Column, checked
from saelab.evaluation.report import Section
from saelab.formats.json_file import read_sealed_json

EVALUATION = "evaluation"


@dataclass(frozen=True)
class MemberFigures:
    """A run of a set, measured alone.

    Attributes:
        ce_added: cross-entropy that it costs, in nats per token; None if it was not measured.
        ce_recovered: (CE_zero - CE) / (CE_zero - CE_plain), likewise.
    """

    name: str
    layer: int
    part: str
    d_sae: int
    l0: float
    fvu: float
    dead: int
    ce_added: float | None
    ce_recovered: float | None
    n_layers: int = 1


@dataclass(frozen=True)
class AtOnce:
    """The model with all runs of a kind at once in place of what they reconstruct.

    Each run reads what the changed model computes. Where a run is not applied (see `Domain`), the
    model's own value stays.

    Attributes:
        what: all, or the part of each block: attention, mlp.
        n_runs: how many runs these are.
        ce, ce_mean, ce_zero: cross-entropy with reconstructions, with each site's mean, with zeros,
            in nats per token.
        recovered: (CE_mean - CE) / (CE_mean - CE_plain), which has a 95 % interval over documents.
        low, high: its ends; None if the text has too few documents.
        recovered_zero: the same against zeros.
        kl: KL(plain || changed) in nats per token.
        top1_agreement: share of positions where both predict the same token first.
        left_alone: share of the rows at which a run is not applied.
    """

    what: str
    n_runs: int
    ce: float
    ce_mean: float
    ce_zero: float
    recovered: float
    low: float | None
    high: float | None
    recovered_zero: float
    kl: float
    top1_agreement: float
    left_alone: float


@dataclass(frozen=True)
class SetEvaluation:
    """What was measured of a set.

    Attributes:
        members: the runs alone, in order of depth.
        ce_plain: the model's cross-entropy in nats per token.
        n_tokens: positions whose predictions count.
        at_once: all runs at once; then each part's, if there are several parts.
    """

    recipe: str
    model: str
    n_tokens: int
    ce_plain: float
    members: tuple[MemberFigures, ...]
    at_once: tuple[AtOnce, ...]

    def values(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def load_set_evaluation(path: Path) -> SetEvaluation | None:
    """What was measured of the set at `path` on its own held-out text; None if nothing was.

    Raises:
        UsageError: the file is damaged.
    """
    file = path / f"{EVALUATION}.json"
    return read_set_evaluation(file) if file.is_file() else None


def read_set_evaluation(file: Path) -> SetEvaluation:
    """What was measured of a set, as its file says.

    Raises:
        UsageError: the file is damaged.
    """
    values = {name: value for name, value in read_sealed_json(file).items() if name != "made"}
    return checked(SetEvaluation, values, str(file))


def set_sections(found: SetEvaluation) -> list[Section]:
    """The tables of a set: its runs by layer, and the model with all of them at once."""
    columns = tuple(
        Column(name, number=name not in ("part", "run"))
        for name in (
            "layer",
            "part",
            "run",
            "latents",
            "L0",
            "FVU",
            "dead",
            "costs",
            "CE recovered",
        )
    )
    rows: list[tuple[str, ...]] = [
        (_layers(m), m.part, m.name, str(m.d_sae), f"{m.l0:.1f}", f"{m.fvu:.4f}", str(m.dead),
         "-" if m.ce_added is None else f"{m.ce_added:+.4f}",
         "-" if m.ce_recovered is None else f"{m.ce_recovered:.1%}")
        for m in found.members
    ]  # fmt: skip
    about = "Costs: cross-entropy that it adds, nats per token; CE recovered: 0 % is zeros there."
    alone = Section("By layer, each alone", columns, rows, about, [])
    return [alone, _together(found)]


def _layers(member: MemberFigures) -> str:
    last = member.layer + member.n_layers - 1
    return str(member.layer) if member.n_layers == 1 else f"{member.layer} to {last}"


def _together(found: SetEvaluation) -> Section:
    named = ("replaced", "runs", "CE", "CE recovered", "95 %", "zeros",
             "KL", "top-1", "left alone")  # fmt: skip
    rows: list[tuple[str, ...]] = [
        (one.what, str(one.n_runs), f"{one.ce:.4f}", f"{one.recovered:.1%}",
         "-" if one.low is None or one.high is None else f"{one.low:.1%} to {one.high:.1%}",
         f"{one.recovered_zero:.1%}", f"{one.kl:.4f}", f"{one.top1_agreement:.1%}",
         f"{one.left_alone:.1%}")
        for one in found.at_once
    ]  # fmt: skip
    about = (
        f"The model alone has CE {found.ce_plain:.4f} on {found.n_tokens} tokens; each run reads "
        "what the changed model computes. CE recovered: 100 % is the model alone, 0 % the mean of "
        "every site; zeros: 0 % is zeros there. Top-1: how often both predict the same token. Left "
        "alone: rows like those that training left out, which pass unchanged."
    )
    columns = tuple(Column(name, number=name != "replaced") for name in named)
    return Section("All at once", columns, rows, about, [])

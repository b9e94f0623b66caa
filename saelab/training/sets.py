"""A set: a directory of runs that replace parts of one model together, with its manifest.

set.json        the model, the recipe, and the runs with their sites in order of depth
evaluation.json what `saelab evaluate SET` measured with all of them at once
NAME/           the runs

The manifest is written before the first run is trained, so it also says which runs are missing.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from saelab.config import Config, UsageError, shortened
from saelab.formats.json_file import read_config, write_sealed_json
from saelab.sites import parts_of, place_of
from saelab.training.run import IDENTITY, Run
from saelab.training.run_paths import SET, is_run

if TYPE_CHECKING:
    from saelab.training.config import TrainConfig

FORMAT = "saelab-set/1"
MAX_LAYERS = 10_000
MAX_MEMBERS = 1000
PARTS = ("attention", "mlp")
"""The parts of a block that a set replaces, in the order in which it computes them."""

RECIPES: dict[str, dict[str, dict[str, str]]] = {
    "transcoders": {
        "mlp": {"site": "blocks.*.mlp.hook_in", "target_site": "blocks.*.hook_mlp_out"}
    },
    "transcoders+attention": {
        "mlp": {"site": "blocks.*.mlp.hook_in", "target_site": "blocks.*.hook_mlp_out"},
        "attention": {"site": "blocks.*.attn.hook_z"},
    },
    "clt": {
        "mlp": {
            "site": "blocks.*.mlp.hook_in",
            "target_site": "blocks.*.hook_mlp_out",
            "layers": "joined",
            "sae.variant": "clt",
        }
    },
}
"""The runs of each recipe that a sweep file may name; `*` is the number of every layer."""

Part = Literal["attention", "mlp"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""The name of a run: one level below the set, never outside of it."""
Text = Annotated[str, Field(min_length=1, max_length=4096)]
Hooks = Annotated[str, Field(min_length=1, max_length=MAX_LAYERS * 64)]
"""A hook, or several joined by +."""


class SetModel(Config):
    """The language model of a set."""

    name: Text
    weights_digest: Text
    tokenizer_digest: Text
    n_layers: int = Field(gt=0, le=MAX_LAYERS)


class Member(Config):
    """One run of a set.

    Attributes:
        layer: the first layer of which it replaces the part.
        n_layers: how many layers, from this on: several for a cross-layer transcoder.
    """

    name: Name
    layer: int = Field(ge=0, lt=MAX_LAYERS)
    n_layers: int = Field(default=1, ge=1, le=MAX_LAYERS)
    part: Part
    reads: Hooks
    writes: Hooks

    @property
    def span(self) -> "Span":
        """What it replaces."""
        return Span(self.layer, self.n_layers, self.part)


class Span(NamedTuple):
    """The parts that a run replaces: of a layer, or of several one after the other."""

    layer: int
    n_layers: int
    part: Part


class SetManifest(Config):
    """The content of set.json."""

    format: Literal["saelab-set/1"] = FORMAT
    recipe: Annotated[str, Field(max_length=128)]
    model: SetModel
    members: tuple[Member, ...] = Field(min_length=1, max_length=MAX_MEMBERS)


class RunSet:
    """A set's directory; methods raise UsageError for what is missing or does not fit.

    Attributes:
        path: the directory.
        manifest: the content of set.json.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_config(SetManifest, self.path / SET)
        check_complete(self.manifest, self.path / SET)

    @property
    def finished(self) -> tuple[bool, ...]:
        """Of each run of the manifest, whether it is there and trained to its end."""
        places = [self.path / member.name for member in self.manifest.members]
        return tuple(is_run(place) and Run(place).finished for place in places)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The runs, in the order in which the model computes their sites.

        Raises:
            UsageError: one is missing, not finished, of another model, or at another site than the
                manifest says, or its weights' header does not match the file.
        """
        return tuple(self._run(member) for member in self.manifest.members)

    def _run(self, member: Member) -> Run:
        # It needs numpy, for which help would wait.
        from saelab.formats.tensor_header import read_tensor_header

        path, model = self.path / member.name, self.manifest.model
        if not is_run(path):
            raise UsageError(
                f"The set {self.path} lacks its run {member.name}, of the {member.part} of layer "
                f"{member.layer}; train it by the same `saelab train sweep` again."
            )
        run = Run(path)
        run.check_finished()
        # Cheap, and it finds a cut file before the runs ahead of it are measured.
        read_tensor_header(run.weights)
        facts, config = run.model(), run.config
        if any(facts[field] != getattr(model, field) for field in IDENTITY[1:]):
            raise UsageError(f"{path} is of {facts['name']}, and its set of {model.name}.")
        here = config.site, config.written_site
        if here != (member.reads, member.writes):
            raise UsageError(
                f"{path} reads {here[0]} and writes {here[1]}, and its set says {member.reads} and "
                f"{member.writes}."
            )
        return run


def check_complete(manifest: SetManifest, where: Path) -> None:
    """Refuse a manifest that lacks a layer; `where` is its file.

    Raises:
        UsageError: a part of a layer is missing or there twice, runs are not in order of depth, or
            sites are not those of the part.
    """
    n_layers = manifest.model.n_layers
    model = f"{manifest.model.name} has {n_layers} layers"
    for member in manifest.members:
        if span_of(member.reads, member.writes) != member.span:
            raise UsageError(
                f"{where} takes {member.name}, which reads {shortened(member.reads)} and writes "
                f"{shortened(member.writes)}, for the {member.part} of layer {member.layer}."
            )
        if (last := member.layer + member.n_layers - 1) >= n_layers:
            raise UsageError(f"{where} has a run at layer {last}, and {model}.")
    spans = [member.span for member in manifest.members]
    have = [(s.layer + i, s.part) for s in spans for i in range(s.n_layers)]
    names = {member.name for member in manifest.members}
    if len(set(have)) < len(have) or len(names) < len(spans):
        raise UsageError(f"{where} names a run, or a part of a layer, twice.")
    if spans != sorted(spans, key=_depth):
        raise UsageError(f"{where} does not list its runs in order of depth.")
    whole = product(range(n_layers), sorted({part for _, part in have}))
    for layer, part in sorted(set(whole) - set(have)):
        raise UsageError(
            f"{where} has nothing for the {part} of layer {layer}; {model}, and a set has all."
        )


def _depth(span: Span) -> tuple[int, int]:
    return span.layer, PARTS.index(span.part)


def span_of(reads: str, writes: str) -> Span | None:
    """The parts that a run replaces: transcoders those of MLPs, SAEs those of an attention.

    None: it replaces no part as a whole.
    """
    hooks = parts_of(reads), parts_of(writes)
    if len(hooks[0]) != len(hooks[1]):
        return None
    places = [place_of(*pair) for pair in zip(*hooks, strict=True)]
    found = [p for p in places if p is not None and p.kind != "residual"]
    parts = {"mlp" if place.kind == "mlp" else "attention" for place in found}
    layers = [place.layer for place in found]
    if len(found) < len(places) or len(parts) > 1:
        return None
    if layers != list(range(layers[0], layers[0] + len(layers))):
        return None
    return Span(layers[0], len(layers), "mlp" if parts == {"mlp"} else "attention")


def write_set(
    path: Path, recipe: str, model: Mapping[str, Any] | None, configs: "Mapping[str, TrainConfig]"
) -> SetManifest:
    """Write the manifest of the runs `configs`, by name, that are or will be in `path`.

    The same set may be written again. `model` are the facts in the store's manifest.

    Raises:
        UsageError: a run replaces no part of a layer, two replace the same one, a layer is missing,
            there is no model, or another set is there.
    """
    if model is None:
        raise UsageError("A set replaces parts of a language model, and the store holds arrays.")
    if lacking := [field for field in SetModel.model_fields if field not in model]:
        raise UsageError(f"The store does not say its model's {lacking[0]}; harvest it again.")
    manifest = SetManifest(
        recipe=recipe,
        model=SetModel(**{field: model[field] for field in SetModel.model_fields}),
        members=members_of(configs),
    )
    there = path / SET
    check_complete(manifest, there)
    if not os.path.lexists(there):
        write_sealed_json(there, manifest.model_dump(mode="json"))
    elif RunSet(path).manifest != manifest:
        raise UsageError(f"{path} holds another set; choose another --out, or delete {there}.")
    return manifest


def members_of(configs: "Mapping[str, TrainConfig]") -> tuple[Member, ...]:
    """The runs as a manifest lists them, in order of depth.

    Raises:
        UsageError: a run replaces no part of a layer.
    """
    members = []
    for name, config in configs.items():
        if (span := span_of(config.site, config.written_site)) is None:
            raise UsageError(
                f"Run {name} reads {config.site} and writes {config.written_site}: a set takes "
                "transcoders of MLPs (from mlp.hook_in or ln2.hook_out to hook_mlp_out or "
                "mlp.hook_out) and SAEs of attention (attn.hook_z, hook_attn_out)."
            )
        sites = {"reads": config.site, "writes": config.written_site}
        members.append(
            Member(name=name, layer=span.layer, n_layers=span.n_layers, part=span.part, **sites)
        )
    return tuple(sorted(members, key=lambda member: _depth(member.span)))


def is_set(path: Path) -> bool:
    """Whether a set is there."""
    return os.path.lexists(path / SET)


def runs_of(paths: Sequence[Path]) -> list[Run]:
    """The runs at these paths; a set stands for all of its runs, in order."""
    return [run for path in paths for run in (RunSet(path).runs if is_set(path) else [Run(path)])]

"""The manifest of an activation store, and the names of its files.

`activations_cache/README.md` is the written specification; this module is its implementation.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator
from typing_extensions import override

from saelab.config import Config, UsageError, shortened
from saelab.files import create_file
from saelab.formats.json_file import canonical_digest, sealed

FORMAT = "saelab-activations/1.1"
WITHOUT_NORMS = "saelab-activations/1"
"""The format before hook files recorded their rows' norms. Such stores are read, and continued in
the same format."""
BLOCK_ROWS = 1024
"""Rows per checksum; the same for every hook, so that all hooks can be read in one order."""
MAX_ROWS_PER_UNIT = 2**24
MAX_UNITS = 10**6
NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
UNIT_FILE = re.compile(r"\d{6}\.h5")

UNTIL = "until_tokens"
"""Key in a manifest's `corpus`: the number of rows at which the harvest ends. `n_contexts` is then
an estimate until the harvest ends and writes `text` into `provenance`."""

PACKED = "packed"
"""Value of `rows_policy["contexts"]` if a context may hold several sequences side by side."""

Dtype = Literal["float32", "float16", "bfloat16"]
JsonObject = dict[str, JsonValue]


class DamagedStoreError(UsageError):
    """A file of a store is damaged; the message names the file."""


GRADIENT_RANGE = (
    "Gradients span more orders of magnitude than float16 has; store them as bfloat16, which has "
    "the range of float32, or as float32."
)
"""Why gradients are not stored as float16."""


class SiteSpec(Config):
    """One recorded quantity: activations at a hook, or the loss gradient with respect to them."""

    hook: str = Field(min_length=1, max_length=128)
    """Hook name, e.g. `blocks.1.hook_resid_post`; any name for your own arrays."""
    d_in: int = Field(gt=0, le=2**20)
    """Width of a row; heads of `hook_z` sites are flattened head-major."""
    kind: Literal["activation", "gradient"] = "activation"
    """`gradient` rows are dL/dx at the same rows, with L the summed next-token loss (your own loss
    for your own arrays)."""

    @property
    def name(self) -> str:
        """The site's name everywhere: the hook, or `<hook>.gradient`."""
        return self.hook if self.kind == "activation" else f"{self.hook}.gradient"

    @property
    def slug(self) -> str:
        """The name of the site's directory."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.name)


class Manifest(Config):
    """The content of a store. Every field except `provenance` decides it."""

    format: Literal["saelab-activations/1", "saelab-activations/1.1"] = FORMAT
    """Name and version of the file format."""
    model: JsonObject | None
    """Facts about the language model (name, weights_digest, ...); null for your own arrays."""
    sites: tuple[SiteSpec, ...] = Field(min_length=1)
    """The recorded sites, in the order of the commit marker's seals."""
    dtype: Dtype
    """Dtype in which activations are stored."""
    context_length: int = Field(gt=0, le=2**16)
    """Tokens per context, special tokens included; 1 for your own arrays."""
    rows_policy: JsonObject = Field(default_factory=dict)
    """Which positions have no row (special tokens); empty if every position has one."""
    label_names: tuple[str, ...] = ()
    """Names of the ground-truth labels, stored as one bit per row each."""
    corpus: JsonObject | None
    """Source, digest and split of the text; null for your own arrays."""
    contexts_per_unit: int = Field(gt=0)
    """Contexts per unit; the last unit may have fewer."""
    n_contexts: int = Field(gt=0, lt=2**32)
    """Contexts planned; the store is complete when all of them are committed."""
    seed: int = Field(ge=0, lt=2**63)
    """Seed of the shuffle of rows inside each unit."""
    provenance: Mapping[str, object] = Field(default_factory=dict)
    """Versions, device, batch size, command, time."""

    @field_validator("sites")
    @classmethod
    def _directories_are_distinct(cls, sites: tuple[SiteSpec, ...]) -> tuple[SiteSpec, ...]:
        for slug, n in Counter(site.slug for site in sites).items():
            if not is_safe_name(slug) or n > 1:
                raise ValueError(
                    f"site directory {slug!r} is unusable or used twice; rename a hook"
                )
        return sites

    @field_validator("label_names")
    @classmethod
    def _labels_are_distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a label name occurs twice")
        return names

    @model_validator(mode="after")
    def _units_are_bounded(self) -> "Manifest":
        if self.max_rows > MAX_ROWS_PER_UNIT:
            raise ValueError(
                f"a unit of {self.max_rows:,} rows; at most {MAX_ROWS_PER_UNIT:,} are allowed"
            )
        if self.n_units > MAX_UNITS:
            raise ValueError(f"{self.n_units:,} units; at most {MAX_UNITS:,} are allowed")
        return self

    @property
    def records_norms(self) -> bool:
        """Whether hook files record the distribution of their rows' norms."""
        return self.format != WITHOUT_NORMS

    @property
    def n_units(self) -> int:
        """Units of the complete store."""
        return -(-self.n_contexts // self.contexts_per_unit)

    @property
    def max_rows(self) -> int:
        """The maximum number of rows of a unit."""
        return min(self.contexts_per_unit, self.n_contexts) * self.context_length

    def unit_contexts(self, unit: int) -> range:
        """The range of contexts, in the whole harvest, that belong to a unit."""
        start = unit * self.contexts_per_unit
        return range(start, min(start + self.contexts_per_unit, self.n_contexts))

    def site(self, name: str) -> SiteSpec:
        """The site of that name; KeyError if there is none."""
        return self._site_of[name]

    @cached_property
    def _site_of(self) -> dict[str, SiteSpec]:
        return {site.name: site for site in self.sites}

    @property
    def packed(self) -> bool:
        """Whether a context may hold several sequences: see `Sequences`."""
        return self.rows_policy.get("contexts") == PACKED

    @property
    def counted(self) -> bool:
        """Whether `n_contexts` is final, not an estimate made at the start of a long text."""
        return UNTIL not in (self.corpus or {}) or "text" in self.provenance

    def planned_in(self, root: Path) -> "Manifest":
        """The manifest with the number of contexts of the store at `root`, if there is one."""
        if self.counted or not (root / "manifest.json").exists():
            return self
        return self.model_copy(update={"n_contexts": read_manifest(root).n_contexts})

    def content(self) -> dict[str, object]:
        """Every field that decides content, as JSON values.

        If the harvest ends at a number of rows, that number decides, and `n_contexts` is left out.
        """
        follows = {"n_contexts"} if UNTIL in (self.corpus or {}) else set[str]()
        return self.model_dump(mode="json", exclude={"provenance", *follows})

    @cached_property
    def content_digest(self) -> str:
        """sha256 (hex) of the content fields; every file of the store carries it."""
        return canonical_digest(self.content())

    @override
    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> "Manifest":
        copied = super().model_copy(update=update, deep=deep)
        # The cached properties of a manifest do not hold for its copy.
        for derived in ("content_digest", "_site_of"):
            vars(copied).pop(derived, None)
        return copied


def is_safe_name(name: str) -> bool:
    """Whether a name can be a directory of the store: no separators, no `..`."""
    return NAME.fullmatch(name) is not None and not name.startswith(".")


def unit_file(unit: int) -> str:
    """File name of a unit."""
    return f"{unit:06d}.h5"


def tokens_path(root: Path, unit: int) -> Path:
    """Path of a unit's token columns; the unit is committed if and only if this file exists."""
    return root / "tokens" / unit_file(unit)


def hook_path(root: Path, site: SiteSpec, unit: int) -> Path:
    """Path of a unit's rows at one site."""
    return root / "hooks" / site.slug / unit_file(unit)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The exact content of `manifest.json`: the fields, then `sha256` over them."""
    fields = sealed(manifest.model_dump(mode="json"))
    return (json.dumps(fields, indent=2, allow_nan=False) + "\n").encode()


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, whole or not at all; a manifest written by another rank stays."""
    create_file(root / "manifest.json", manifest_bytes(manifest))


def read_manifest(root: Path) -> Manifest:
    """The manifest of the store at `root`.

    Raises:
        UsageError: `root` holds no store, or one of another format version.
        DamagedStoreError: the file was changed after it was written.
    """
    path = root / "manifest.json"
    if path.is_symlink() or not path.is_file():
        raise UsageError(f"{root} is no activation store: it has no manifest.json.")
    if path.stat().st_size > 2**24:
        raise DamagedStoreError(f"{path} is larger than 16 MiB; it is not a manifest.")
    raw = path.read_bytes()
    try:
        fields = json.loads(raw)
        del fields["sha256"]
        manifest = Manifest.model_validate(fields)
    except (ValidationError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedStoreError(f"{path} is not a valid manifest: {_one_line(error)}.") from None
    if manifest_bytes(manifest) != raw:
        raise DamagedStoreError(f"{path} was altered after it was written.")
    return manifest


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
    return " ".join(str(error).split())


def differences(stored: Manifest, asked: Manifest) -> list[str]:
    """One sentence per content field in which two manifests differ; empty if they agree."""
    left, right = _flat(stored.content()), _flat(asked.content())
    told = []
    if {s.name for s in stored.sites} != {s.name for s in asked.sites}:
        # The facts of each site would be pages, in which the names are lost.
        del left["sites"], right["sites"]
        beyond = _beyond(stored, asked), _beyond(asked, stored)
        told = [f"only the store has the sites {beyond[0]}, and only the command {beyond[1]}"]
    fields = sorted(left.keys() | right.keys())
    return told + [
        f"{field} is {left.get(field, 'absent')} in the store, {right.get(field, 'absent')} asked"
        for field in fields
        if left.get(field) != right.get(field)
    ]


def _beyond(one: Manifest, other: Manifest) -> str:
    """The sites that only the first has."""
    names = {site.name for site in one.sites} - {site.name for site in other.sites}
    return shortened(", ".join(sorted(names)) or "none")


def _flat(value: object, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        parts = [_flat(inner, f"{prefix}.{key}" if prefix else key) for key, inner in value.items()]
        return {field: text for part in parts for field, text in part.items()}
    return {prefix: json.dumps(value)}

"""What saelab's own metadata requires, and what of it is installed."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires

from saelab.provenance import version_of

_LINE = re.compile(r"([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?\s*\(?([^;)]*)\)?\s*(?:;\s*(.*))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")
_PLATFORM = re.compile(r"sys_platform\s*==\s*['\"]([^'\"]+)['\"]")
_BOUND = re.compile(r"(>=|<)\s*([0-9.]+)")


@dataclass(frozen=True)
class Requirement:
    """A package that saelab uses.

    Attributes:
        package: its name at the package index.
        bounds: the versions that fit, such as `>=2.11,<3`; empty for all.
        extra: the extra of saelab that brings it; empty for what is always there.
        version: what is installed; None if nothing is.
    """

    package: str
    bounds: str
    extra: str
    version: str | None

    @property
    def fits(self) -> bool:
        """Whether an installed version is within the bounds."""
        if self.version is None:
            return False
        own = _numbers(self.version)
        pairs = [(sign, _numbers(number)) for sign, number in _BOUND.findall(self.bounds)]
        return all(own >= n if sign == ">=" else own < n for sign, n in pairs)


def requirements(package: str = "saelab") -> list[Requirement]:
    """Every package that saelab requires here; none if it runs without being installed."""
    try:
        lines = requires(package) or []
    except PackageNotFoundError:
        return []
    return list(_read(lines, package))


def _read(lines: list[str], own: str) -> Iterator[Requirement]:
    for line in lines:
        found = _LINE.match(line)
        if found is None or found[1].lower() == own:
            continue
        marker = found[4] or ""
        platform = _PLATFORM.search(marker)
        if platform is not None and platform[1] != sys.platform:
            continue
        extra = _EXTRA.search(marker)
        yield Requirement(
            found[1], found[3].strip(), extra[1] if extra else "", version_of(found[1])
        )


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version starts with: (2, 13, 0) of 2.13.0+cpu."""
    found = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()

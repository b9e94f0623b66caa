"""The packages that pyproject.toml names, by the names that are imported."""

import re
import tomllib

from sources import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"pyyaml": "yaml"}
"""Packages that are imported by another name than they are installed by."""


def packages(requirements):
    """The names that are imported, those of saelab's own extras too."""
    for requirement in requirements:
        if own := re.match(r"saelab\[(.*)\]", requirement):
            for extra in own[1].split(","):
                yield from packages(PROJECT["optional-dependencies"][extra])
        else:
            name = re.split(r"[<>=;\s]", requirement)[0]
            yield MODULES.get(name, name.replace("-", "_"))

"""CONTRIBUTING's examples, as their readers would copy them."""

import re
from pathlib import Path
from types import ModuleType

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
VARIANT, ENTRY, SUITE, METRIC, PAGE = re.findall(r"```(?:python|toml)\n(.*?)```", TEXT, re.DOTALL)


def module_of(code: str, name: str) -> ModuleType:
    """The module that a file of that name would be."""
    made = ModuleType(name)
    exec(code, made.__dict__)
    return made

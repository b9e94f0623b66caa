"""A name means one thing: no class of a package shares its name with another."""

import ast
from collections import defaultdict
from collections.abc import Mapping

import pytest
from sources import FILES, tree


def repeated(modules: Mapping[str, ast.Module]) -> dict[str, list[str]]:
    """Class names that more than one class has, and where."""
    found = defaultdict(list)
    for name, module in modules.items():
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(name)
    return {name: at for name, at in found.items() if len(at) > 1}


@pytest.mark.parametrize("package", ["saelab", "feature_browser"])
def test_no_class_name_means_two_things(package):
    assert repeated({name: tree(name) for name in FILES if name.startswith(package)}) == {}


def test_a_second_class_of_a_name_would_be_found():
    one, two = ast.parse("class Step: pass"), ast.parse("if True:\n    class Step: pass")
    assert repeated({"a": one, "b": two}) == {"Step": ["a", "b"]}

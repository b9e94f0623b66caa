"""Classes are abstract or final, and nothing asks which variant an SAE is of."""

import ast
from functools import cache

import pytest
from sources import FILES, tree

from saelab.sae.variants import BUILT_IN

BASES_BY_DESIGN = {
    "Config": "a record of no options, which every configuration adds its own to",
    **dict.fromkeys(
        ("GraphOptions", "PruneOptions", "EvaluateOptions", "TaskOptions", "TransportOptions"),
        "options of a function, which those of a verb join; nothing is overridden",
    ),
    "UsageError": "an exception, whose kinds are told apart by the class alone",
}


class Module:
    """The classes of a file, and where the names that it imports come from."""

    def __init__(self, name: str) -> None:
        module = tree(name)
        self.classes = {n.name: n for n in ast.walk(module) if isinstance(n, ast.ClassDef)}
        self.imported = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in ast.walk(module)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }


@cache
def modules() -> dict[str, Module]:
    """All modules by name; not read while tests are collected, which every worker does."""
    return {name: Module(name) for name in FILES}


def base_name(node: ast.expr) -> str:
    node = node.value if isinstance(node, ast.Subscript) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def is_abstract(node: ast.ClassDef) -> bool:
    names = {base_name(base) for base in node.bases}
    methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    decorators = {base_name(d) for method in methods for d in method.decorator_list}
    marked = node.name.startswith("Abstract") or "ABC" in names
    return marked or "Protocol" in names or "abstractmethod" in decorators


def concrete_bases(module: str) -> list[str]:
    """`Class(Base)` for every class of the module whose base could be made."""
    here, found = modules()[module], []
    for node in here.classes.values():
        for base in map(base_name, node.bases):
            where, name = here.imported.get(base, (module, base))
            owner = modules().get(where or "")
            theirs = None if owner is None else owner.classes.get(name)
            if theirs is not None and not is_abstract(theirs) and name not in BASES_BY_DESIGN:
                found.append(f"{node.name}({name})")
    return found


@pytest.mark.parametrize("package", ["saelab", "feature_browser"])
def test_no_concrete_class_is_subclassed(package):
    found = {m: concrete_bases(m) for m in modules() if m.startswith(package)}
    assert {m: pairs for m, pairs in found.items() if pairs} == {}


def test_a_subclass_of_a_concrete_class_would_be_found(monkeypatch, tmp_path):
    (tmp_path / "a.py").write_text("class Made:\n    pass\n")
    (tmp_path / "b.py").write_text("from a import Made as M\n\nclass More(M):\n    pass\n")
    for name in ("a", "b"):
        monkeypatch.setitem(FILES, name, tmp_path / f"{name}.py")
        monkeypatch.setitem(modules(), name, Module(name))
    assert concrete_bases("b") == ["More(Made)"]


def asked(name: str) -> set[str]:
    """The classes that a module compares types with."""
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.MatchClass):
            found.add(base_name(node.cls))
        elif isinstance(node, ast.Call) and base_name(node.func) in ("isinstance", "issubclass"):
            found |= {
                base_name(part)
                for part in ast.walk(node.args[1])
                if isinstance(part, ast.Name | ast.Attribute)
            }
    return found


def test_nothing_but_a_variant_itself_asks_for_its_class():
    own = {place.split(":")[0] for place in BUILT_IN.values()}
    classes = {name for module in own for name in modules()[module].classes}
    assert {"TopK", "TopKConfig", "JumpReLU", "BatchAbsTopK"} <= classes
    found = {m: asked(m) & classes for m in modules() if m not in own}
    assert {m: names for m, names in found.items() if names} == {}


def test_no_protocol_is_checked_for_tensors():
    """Since Python 3.12 such a check sees no parameter and no buffer of a module."""
    found = {
        f"{name}.{node.name}": [ast.unparse(line.target) for line in data]
        for name, module in modules().items()
        for node in module.classes.values()
        if "runtime_checkable" in {base_name(d) for d in node.decorator_list}
        and (data := [line for line in node.body if isinstance(line, ast.AnnAssign)])
        and any("Tensor" in ast.unparse(line.annotation) for line in data)
    }
    assert found == {}

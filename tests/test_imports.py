"""No module needs itself by way of others, and none uses what another keeps to itself."""

import ast
import sys
from functools import cache

from requirements import PROJECT, packages
from sources import FILES, imports, tree

from saelab.extras import EXTRAS
from saelab.sae.variants import BUILT_IN

OF_OTHERS = {
    "_model": "of a back end, whose weights saelab.lm.internals reads for all",
    "_bridge": "likewise",
    "_replace": "public: how a NamedTuple is changed",
    "_dynamo": "torch names nothing public that drops compiled code",
    "_ensure_torchvision": "TransformerLens would install packages; it is asserted to be there",
}
"""Private names that a module uses of another, and why."""


@cache
def needs(name: str) -> set[str]:
    """The modules that a module imports, wherever in its text."""
    found = set()
    for _, module, member in imports(tree(name)):
        whole = f"{module}.{member}"
        found.add(whole if whole in FILES else module)
    return found & FILES.keys() - {name}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a circle, in its order; none if there is no circle."""
    left = {name: set(below) for name, below in graph.items()}
    while ends := [name for name, below in left.items() if not below & left.keys()]:
        for name in ends:
            del left[name]
    way: list[str] = [min(left)] if left else []
    while way and way.count(way[-1]) == 1:
        way.append(min(left[way[-1]] & left.keys()))
    return way[way.index(way[-1]) :] if way else []


def test_no_import_leads_back():
    assert circle({name: needs(name) for name in FILES}) == []


def test_a_circle_would_be_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"c"}, "e": set()}
    assert circle(graph) == ["b", "c", "b"]
    assert circle({"a": {"b"}, "b": set()}) == []


def reached(name: str) -> set[str]:
    """The modules that a module needs, itself or by way of others."""
    found, new = set(), {name}
    while new:
        found |= new
        new = set().union(*map(needs, new)) - found
    return found


def test_variants_do_not_know_each_other():
    own = {place.split(":")[0] for place in BUILT_IN.values()}
    assert own <= FILES.keys()
    assert {name: reached(name) & own for name in own} == {name: {name} for name in own}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def defined(module: ast.Module) -> set[str]:
    """Functions, classes, and attributes of `self` and of classes that a module makes."""
    found = {n.name for n in ast.walk(module) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(module):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found |= {node.attr} if is_own(node) else set()
    return found


def is_own(node: ast.Attribute) -> bool:
    return ast.unparse(node.value) in ("self", "cls", "super()")


def private_uses(module: ast.Module) -> list[str]:
    """What a module uses of others although its name begins with an underscore."""
    known = defined(module) | OF_OTHERS.keys()
    found = [
        f"line {line}: {where}.{name}"
        for line, where, name in imports(module)
        if is_private(name or where.rpartition(".")[2]) and not where.startswith("__")
    ]
    return found + [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute) and is_private(node.attr)
        if node.attr not in known and not is_own(node)
    ]


def test_what_a_module_keeps_to_itself_no_other_uses():
    found = {name: private_uses(tree(name)) for name in FILES}
    assert {name: uses for name, uses in found.items() if uses} == {}


def test_a_private_use_would_be_found():
    text = "from a import _b\nimport c\nc._d()\nself._e = 1\nother._e\nc.x._f = 2\n"
    found = {"line 1: a._b", "line 3: c._d", "line 6: c.x._f"}
    assert set(private_uses(ast.parse(text))) == found


def test_every_exception_is_needed():
    used = {n.attr for name in FILES for n in ast.walk(tree(name)) if isinstance(n, ast.Attribute)}
    assert used >= OF_OTHERS.keys()


def test_every_import_is_a_dependency_or_is_brought_by_its_extra():
    core = set(packages(PROJECT["dependencies"]))
    own = {"saelab", "feature_browser", *sys.stdlib_module_names}
    # pytest is for contract tests alone; the others come with torch, pydantic and streamlit.
    beside = {"pytest", "jinja2", "pydantic_core", "typing_extensions", "starlette"}
    named = {
        module.partition(".")[0]
        for name in FILES
        if not name.startswith("tools")
        for _, module, _ in imports(tree(name))
    }
    assert named - own - beside - core == set(EXTRAS)
    assert not core & set(EXTRAS)

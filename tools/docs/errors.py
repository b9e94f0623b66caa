"""Every sentence with which saelab refuses something, from the `UsageError`s of its source."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"saelab": ROOT / "saelab", "feature_browser": ROOT / "apps" / "feature_browser"}
VALUE = re.compile(r"<[\w.]+>")
HEAD = """\
# What an error means

saelab refuses bad input with one sentence and exit code 2, before any work is lost. It has
the value, the limit and what to do. Words in &lt;brackets&gt; stand for values. To find a sentence,
search for words of it that no value can change.
"""


COLUMNS = "| what it says | what to do | raised in |\n| --- | --- | --- |\n"


@dataclass(frozen=True)
class Refusal:
    """One sentence: the module and the function that say it, what is wrong, and the remedy."""

    module: str
    function: str
    wrong: str
    remedy: str


def refusals() -> Iterator[Refusal]:
    """Those whose text stands where they are raised, module by module."""
    for package, root in PLACES.items():
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            module = ".".join((package, *parts)).removesuffix(".__init__")
            yield from _of_module(module, ast.parse(path.read_text()))


def _of_module(module: str, tree: ast.Module) -> Iterator[Refusal]:
    def walk(node: ast.AST, function: str) -> Iterator[Refusal]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}".lstrip(".")
        if isinstance(node, ast.Call) and _is_usage_error(node) and node.args:
            text = " ".join(template(node.args[0]).split())
            if VALUE.sub("", text).strip():
                yield Refusal(module, function, *_split(text))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function)

    yield from walk(tree, "")


def _is_usage_error(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "UsageError"


def template(node: ast.expr) -> str:
    """The text of an expression, with a name for each value that is put into it."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(template, parts))
        case ast.FormattedValue(value=value):
            return template(value)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left) + template(right)
        case ast.IfExp(body=body):
            return template(body)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return f"<{name.strip('_').lower()}>"
        case ast.Call(func=ast.Attribute(attr="format", value=text)):
            return template(text)
        case _:
            return "<...>"


def _split(text: str) -> tuple[str, str]:
    """What is wrong, and what to do: they are parted by a semicolon, or are two sentences."""
    for mark in ("; ", ". "):
        wrong, found, remedy = text.partition(mark)
        if found and remedy:
            return wrong, remedy
    return text, ""


def page() -> str:
    """The page: a table for each part of saelab."""
    tables: dict[str, list[str]] = {}
    for each in refusals():
        part = ".".join(each.module.split(".")[:2])
        where = f"`{each.module.removeprefix(part).lstrip('.') or part}`<br>`{each.function}`"
        cells = [_cell(each.wrong), _cell(each.remedy), where]
        tables.setdefault(part, []).append(f"| {' | '.join(cells)} |\n")
    parts = [f"## {part}\n\n{COLUMNS}{''.join(rows)}" for part, rows in sorted(tables.items())]
    return "\n".join([HEAD, *parts])


def _cell(text: str) -> str:
    plain = escape(text, quote=False).replace("|", "&#124;").replace("[", "&#91;")
    return plain.replace("*", "&#42;").replace("_", "&#95;").replace("`", "&#96;")

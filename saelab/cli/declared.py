"""The configurations of training, read from their source without importing their modules.

Each stands in one file with the mathematics that it configures, and so with torch. Importing torch
takes two seconds, too long for `--help` or for a misspelt option. So this module builds a class
from the fields alone, and from what these need. Training itself uses the real classes.
"""

import ast
import inspect
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
PACKAGES = ("saelab.sae.", "saelab.training.")
"""Packages whose modules are read instead of imported."""


@cache
def declared(module: str, name: str, without: str = "") -> Any:  # noqa: ANN401 - any object
    """The object that a module calls `name`; of a class its fields, except `without`."""
    node = _statements(module)[name]
    if isinstance(node, ast.Import):
        return import_module(name)
    if isinstance(node, ast.ImportFrom):
        origin = node.module or ""
        inner = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
        if origin.startswith(PACKAGES):
            return declared(origin, inner)
        return getattr(import_module(origin), inner)
    fields = _fields(node, without) if isinstance(node, ast.ClassDef) else []
    node = _with_body(node, fields) if isinstance(node, ast.ClassDef) else node
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    scope: dict[str, Any] = {"__name__": module}
    scope |= {n: declared(module, n) for n in names & _statements(module).keys() if n != name}
    exec(compile(ast.Module([node], []), str(_path(module)), "exec"), scope)
    found = scope[name]
    if isinstance(found, type) and issubclass(found, BaseModel):
        _describe(found, fields)
    return found


def declared_variants() -> dict[str, type[BaseModel]]:
    """The configurations of the built-in variants by their names."""
    places = declared("saelab.sae.variants", "BUILT_IN")
    return {name: declared(*place.split(":")) for name, place in places.items()}


def _path(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


@cache
def _statements(module: str) -> dict[str, ast.stmt]:
    """The statement that defines each name of a module."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(_path(module).read_bytes()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node
        elif name := _name_of(node):
            found[name] = node
    return found


def _name_of(node: ast.stmt) -> str:
    """The name in an annotated assignment."""
    target = node.target if isinstance(node, ast.AnnAssign) else None
    return target.id if isinstance(target, ast.Name) else ""


def _fields(node: ast.ClassDef, without: str) -> list[ast.stmt]:
    """The fields of a class, and the strings below them."""
    kept: list[ast.stmt] = []
    for before, part in zip([None, *node.body], node.body, strict=False):
        is_field = bool(_name_of(part)) and "ClassVar" not in ast.unparse(part)
        is_text = isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)
        if (is_field and _name_of(part) != without) or (is_text and before in (None, *kept[-1:])):
            kept.append(part)
    return kept


def _with_body(node: ast.ClassDef, body: list[ast.stmt]) -> ast.ClassDef:
    return ast.ClassDef(
        name=node.name,
        bases=node.bases,
        keywords=node.keywords,
        body=body or [ast.copy_location(ast.Pass(), node)],
        decorator_list=node.decorator_list,
        lineno=node.lineno,
        col_offset=node.col_offset,
        end_lineno=node.end_lineno,
        end_col_offset=node.end_col_offset,
    )


def _describe(cls: type[BaseModel], fields: list[ast.stmt]) -> None:
    """Give each field the string below it, as pydantic does if it finds the source."""
    for field, text in pairwise(fields):
        if _name_of(field) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            cls.model_fields[_name_of(field)].description = inspect.cleandoc(str(text.value.value))

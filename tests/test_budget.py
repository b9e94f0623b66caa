"""What keeps the code readable on one screen or two."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(p for room in ("saelab", "apps", "tools") for p in (ROOT / room).rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 300, 40


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short_and_shapes_are_checked(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE
    # It would turn annotations into strings, which nothing checks.
    assert "from __future__ import annotations" not in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert body_lines(node) <= MAX_FUNCTION, node.name

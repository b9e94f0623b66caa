"""What keeps the code readable on one screen or two."""

import ast

from sources import FILES, tree

MAX_FILE, MAX_FUNCTION = 300, 40


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def long_functions(name):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(tree(name)) if isinstance(node, functions)]
    return [f"{name}.{f.name}" for f in found if body_lines(f) > MAX_FUNCTION]


def test_files_and_functions_are_short():
    lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert {name: n for name, n in lines.items() if n > MAX_FILE} == {}
    assert [function for name in FILES for function in long_functions(name)] == []

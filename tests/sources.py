"""The modules of the package, the app and the tools, each parsed once."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
    for root in (ROOT, ROOT / "apps")
    for package in ("saelab", "tools", "feature_browser")
    for path in sorted((root / package).rglob("*.py"))
}
"""Paths by the modules' names."""


@cache
def tree(name: str) -> ast.Module:
    """The module's syntax."""
    return ast.parse(FILES[name].read_text())


def imports(module: ast.Module) -> Iterator[tuple[int, str, str | None]]:
    """Line, module and name of each `from module import name`; None: of `import module`."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)

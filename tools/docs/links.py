"""Links from a page to files beside the documentation: the site has these files too."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)]*)?\))")
OUTSIDE = ("http://", "https://", "mailto:")


def place(page: str, link: str) -> str:
    """The path from the root of what `link` on the page at `page` (from the root) names."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def site_place(path: str) -> str:
    """Where the site has a file of the repository, among the pages."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    # A README inside a folder would be its index, and hide what the folder's name means.
    return f"source/{path}".replace("README.md", "about.md")


def links(text: str) -> Iterator[str]:
    """The links to files, without their anchors."""
    for found in LINK.finditer(text):
        if not found[2].startswith(OUTSIDE):
            yield found[2]


def rewritten(page: str, text: str) -> str:
    """The text of the page at `page` (from the root) with links to places of the site."""
    here = posixpath.dirname(site_place(page))

    def change(found: re.Match[str]) -> str:
        if found[2].startswith(OUTSIDE):
            return found[0]
        there = posixpath.relpath(site_place(place(page, found[2])), here or ".")
        return f"{found[1]}{there}{found[3]}"

    return LINK.sub(change, text)


def beside(pages: Iterator[Path]) -> dict[str, Path]:
    """The files outside docs that these pages name, and those that they name, by their paths."""
    found: dict[str, Path] = {}
    todo = list(pages)
    while todo:
        page = todo.pop()
        here = page.relative_to(ROOT).as_posix()
        for link in links(page.read_text()):
            path = place(here, link)
            if path.startswith("docs/") or path in found or not (ROOT / path).is_file():
                continue
            found[path] = ROOT / path
            if path.endswith(".md"):
                todo.append(ROOT / path)
    return found

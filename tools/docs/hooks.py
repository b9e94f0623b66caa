"""What mkdocs asks while it builds the site: the generated pages, and links out of `docs/`.

With `DOCS_NOTEBOOKS=1` the notebooks are executed and are pages with their outputs (minutes).
"""

import os
from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from saelab.cli import VERBS
from tools.docs import api, commands, errors, links

# mkdocs is installed by `make docs` alone, so nothing here is checked against its types.
MkDocs = Any
DOCS = links.ROOT / "docs"
_ORIGIN: dict[str, str] = {}
"""By a page's place on the site: the path of its file in the repository."""


def on_config(config: MkDocs) -> MkDocs:
    """Give the generated pages their places in the navigation."""
    books = [f"notebooks/{path.stem}.md" for path in _books()]
    subjects = [f"reference/api/{page}.md" for page in api.SUBJECTS]
    commands_ = [{f"saelab {verb}": commands.place(verb)} for verb in VERBS]
    lists = {
        "Notebooks": ["notebooks/index.md", *books],
        "Command line": [commands.INDEX, *commands_],
        "Python": ["reference/api/index.md", *subjects],
    }
    about = [f"source/{name}" for name in ("CONTRIBUTING.md", "AGENTS.md")]
    formats = ["source/activations_cache/about.md", "source/saelab/kernels/about.md"]
    reference: list[Any] = [{title: pages} for title, pages in lists.items()]
    reference.append({"Errors": "reference/errors.md"})
    config.nav += [{"Reference": [*reference, *formats, *about]}]
    return config


def on_files(files: MkDocs, config: MkDocs) -> MkDocs:
    """Add the pages that are made from the source, and the files that pages link to."""
    generated = import_module("mkdocs.structure.files").File.generated
    for name, text in chain(_generated(), _notebooks()):
        files.append(generated(config, name, content=text))
    for path, file in links.beside(DOCS.rglob("*.md")).items():
        name = links.site_place(path)
        _ORIGIN[name] = path
        files.append(generated(config, name, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: MkDocs, **_: object) -> str:
    """Point links to files of the repository to their copies on the site."""
    name = page.file.src_uri
    if (DOCS / name).is_file():
        return links.rewritten(f"docs/{name}", markdown)
    return links.rewritten(_ORIGIN[name], markdown) if name in _ORIGIN else markdown


def _generated() -> Iterator[tuple[str, str]]:
    yield from commands.pages()
    yield from api.pages()
    yield "reference/errors.md", errors.page()


def _books() -> list[Path]:
    return sorted((links.ROOT / "notebooks").glob("*.ipynb"))


def _notebooks() -> Iterator[tuple[str, str | bytes]]:
    from tools.docs import notebooks

    return notebooks.pages(_books(), execute=os.environ.get("DOCS_NOTEBOOKS") == "1")

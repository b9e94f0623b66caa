"""The reference of `import saelab`: its public names by subject, with their docstrings."""

from collections.abc import Iterator

import saelab

SUBJECTS = {
    "models": ("Language models and activations", ("lm", "activations")),
    "saes": ("SAEs", ("sae",)),
    "training": ("Training and runs", ("training", "host")),
    "evaluation": ("Measuring", ("evaluation",)),
    "analysis": ("Latents, steering and circuits", ("analysis",)),
    "other": ("Figures and errors", ("drawing", "config")),
}
"""By the page's name: its title, and the packages whose public names it has."""


def places() -> dict[str, list[str]]:
    """The full names of the public names, by the page that has them."""
    found: dict[str, list[str]] = {page: [] for page in SUBJECTS}
    for name in dir(saelab):
        module = getattr(saelab, name).__module__
        part = module.split(".")[1]
        (page,) = (page for page, (_, parts) in SUBJECTS.items() if part in parts)
        found[page].append(f"{module}.{name}")
    return found


def pages() -> Iterator[tuple[str, str]]:
    """The names of the pages and their text."""
    links = [f"- [{title}]({page}.md)" for page, (title, _) in SUBJECTS.items()]
    text = "# The Python interface\n\nAll of these are names of `saelab`: `saelab.train`.\n"
    yield "reference/api/index.md", "\n".join([text, *links, ""])
    for page, names in places().items():
        blocks = map(_block, names)
        yield f"reference/api/{page}.md", "\n".join([f"# {SUBJECTS[page][0]}\n", *blocks])


def _block(name: str) -> str:
    public = f"saelab.{name.rpartition('.')[2]}"
    options = {"heading": public, "toc_label": public, "heading_level": 2}
    lines = [f"      {key}: {value}\n" for key, value in options.items()]
    return f"::: {name}\n    options:\n{''.join(lines)}"

"""The notebooks as pages: text, code and, if they are executed, what they print and draw."""

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

PLOTLY = "notebooks/plotly.min.js"
LONGEST = 4_000
"""Characters of one output; what is longer ends with how much is left out."""
NOT_RUN = (
    "!!! note\n    This copy was built without running its code: `make docs NOTEBOOKS=1` does.\n"
)


def pages(paths: Sequence[Path], *, execute: bool) -> Iterator[tuple[str, str | bytes]]:
    """The names of the pages and files, and their content; executing takes minutes."""
    import nbformat

    rows = []
    for path in paths:
        notebook: Any = nbformat.read(path, as_version=4)
        if execute:
            _execute(notebook)
        yield f"notebooks/{path.stem}.md", _page(notebook, executed=execute)
        rows.append(f"- [{_title(notebook)}]({path.stem}.md)")
    if execute:
        import plotly

        yield PLOTLY, (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_bytes()
    yield "notebooks/index.md", "\n".join(["# Notebooks\n", *rows, ""])


def _execute(notebook: Any) -> None:  # noqa: ANN401 - nbformat's
    import tempfile

    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as scratch:
        resources = {"metadata": {"path": scratch}}
        NotebookClient(notebook, timeout=900, resources=resources, kernel_name="python3").execute()


def _title(notebook: Any) -> str:  # noqa: ANN401 - nbformat's
    first = notebook.cells[0].source.splitlines()[0]
    return first.lstrip("# ")


def _page(notebook: Any, *, executed: bool) -> str:  # noqa: ANN401 - nbformat's
    blocks = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            blocks.append(cell.source)
        else:
            blocks.append(f"```python\n{cell.source}\n```")
            blocks += [shown for output in cell.outputs if (shown := output_html(output))]
        if len(blocks) == 1 and not executed:
            blocks.append(NOT_RUN)
    return "\n\n".join(blocks) + "\n"


def output_html(output: Any) -> str:  # noqa: ANN401 - nbformat's
    """What a cell printed or drew, as HTML; empty for what went to standard error."""
    if output.output_type == "stream":
        return _text(output.text) if output.name == "stdout" else ""
    data = output.get("data", {})
    if (figure := data.get("application/vnd.plotly.v1+json")) is not None:
        return _figure(figure)
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">'
    if "text/html" in data:
        return f'<div class="output">{data["text/html"]}</div>'
    return _text(data.get("text/plain", ""))


def _text(text: str) -> str:
    left = len(text) - LONGEST
    cut = text if left <= 0 else f"{text[:LONGEST]}\n... and {left} more characters"
    return f'<pre class="output">{escape(cut.rstrip())}</pre>' if cut.strip() else ""


def _figure(figure: dict[str, Any]) -> str:
    """A figure that the page's own copy of plotly draws; `</` cannot end the script."""
    content = json.dumps({key: figure[key] for key in ("data", "layout")}).replace("</", "<\\/")
    return f'<div class="plotly-figure"><script type="application/json">{content}</script></div>'

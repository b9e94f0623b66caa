"""The documentation is checked: what it names exists, what it shows runs."""

import re
import shlex
from pathlib import Path

import pytest

import saelab
from saelab.cli import VERBS
from saelab.cli.completion import commands
from saelab.cli.parse import read
from saelab.config import UsageError
from saelab.evaluation.measurement import BUILT_IN as MEASUREMENTS
from saelab.evaluation.measurement import Measurement, measurements
from saelab.sae.variants import BUILT_IN

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md")]
PAGES.append(ROOT / "activations_cache" / "README.md")
PAGES += sorted(DOCS.rglob("*.md"))


def test_the_page_of_verbs_names_every_verb_and_no_other():
    named = re.findall(r"^\| `saelab ([a-z]+)", (DOCS / "verbs.md").read_text(), re.MULTILINE)
    assert sorted(set(named)) == sorted(VERBS)


def test_the_page_of_variants_names_every_variant_and_no_other():
    page = (DOCS / "variants.md").read_text()
    named = re.findall(r"^\| `([a-z][a-z-]*)` \|", page, re.MULTILINE)
    assert sorted(named) == sorted(BUILT_IN)


def line(m: Measurement) -> str:
    needs = [(need.__doc__ or "").partition(".")[0].lower() for need in m.needs]
    return f"| `{m.name}` | {m.title} | {m.suite} | {', '.join(needs)} |"


def test_the_table_of_measurements_is_whole():
    page = (DOCS / "measurements.md").read_text()
    table = "\n".join(line(measurements()[name]) for name in MEASUREMENTS)
    assert f"| --- | --- | --- | --- |\n{table}\n\n" in page, table


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_the_documentation_names_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    links = [link for link in links if not link.startswith(("http", "reference/", "../reference/"))]
    paths = re.findall(r"`((?:saelab|apps|tests|tools|notebooks)/[\w./-]+)`", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def anchors(page):
    """What may stand behind # in a link to the page: its headings, as the site names them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\]\([^)]*\)|[^\w\s-]", "", title).strip().lower()
        yield re.sub(r"[-\s]+", "-", plain)


def test_links_lead_to_headings_that_there_are():
    wrong = [
        f"{page.relative_to(ROOT)}: {link}#{anchor}"
        for page in PAGES
        for link, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text())
        if not link.startswith(("reference/", "../reference/"))
        if anchor not in anchors(page.parent / link if link else page)
    ]
    assert not wrong


def each(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda p: str(p.relative_to(ROOT)))


def fences(page, *languages):
    """The blocks of code in these languages; "" is for those that name none."""
    for language, code in re.findall(
        r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    ):
        if language in languages:
            yield code


def typed(code):
    """The words of each line that starts with saelab, or with torchrun in front of it."""
    for line in re.sub(r" *\\?\n +", " ", code).splitlines():
        words = shlex.split(line, comments=True)
        if "saelab" in words[:2]:
            yield words[words.index("saelab") + 1 :]
        elif "saelab.cli" in words:
            yield words[words.index("saelab.cli") + 1 :]


COMMANDS = dict(commands())


@each(PAGES)
def test_what_the_documentation_types_can_be_typed(page):
    for code in fences(page, ""):
        for words in typed(code):
            if "..." in words or not words:
                continue
            path = " ".join(words[: 2 if COMMANDS[words[0]].choices else 1])
            if words[:2] != ["import", "list"]:
                read(COMMANDS[path], words[len(path.split()) :])


def test_a_command_that_cannot_be_typed_would_be_found():
    (words,) = typed("saelab train topk --d-sea 64 \\\n    --k 4\n")
    with pytest.raises(UsageError, match="--d-sae"):
        read(COMMANDS["train topk"], words[2:])


RUNNING = [page for page in PAGES if page.name not in ("CONTRIBUTING.md", "README.md")]


@each([page for page in RUNNING if any(fences(page, "python"))])
def test_the_documentations_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in fences(page, "python"):
        exec(compile(code, str(page), "exec"), {})


def test_agents_are_told_which_verbs_answer_in_json():
    told = re.findall(
        r"^\| `saelab (\w+)[^`]*--json`", (ROOT / "AGENTS.md").read_text(), re.MULTILINE
    )
    json = {p for p, c in COMMANDS.items() for o in c.options if o.name == "--json" and o.is_switch}
    assert sorted(told) == sorted(json)


def test_every_page_has_its_place_in_the_navigation():
    places = (ROOT / "mkdocs.yml").read_text()
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert pages == set(re.findall(r"[\w/-]+\.md", places))


def test_the_site_fetches_nothing():
    assert "font: false" in (ROOT / "mkdocs.yml").read_text()
    for path in (DOCS / "assets").iterdir():
        assert "//" not in re.sub(r"(?m)^//.*", "", path.read_text()), path


def test_every_public_name_can_be_imported():
    for name in dir(saelab):
        assert getattr(saelab, name) is not None


@pytest.mark.slow
def test_readmes_python_runs(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "readme" / "features.h5").is_file()

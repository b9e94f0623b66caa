"""The documentation is checked: what it names exists, what it shows runs."""

import re
from pathlib import Path

import pytest

import saelab
from saelab.cli import VERBS
from saelab.evaluation.measurement import BUILT_IN as MEASUREMENTS
from saelab.evaluation.measurement import Measurement, measurements
from saelab.sae.variants import BUILT_IN

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "activations_cache" / "README.md"]
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
    links = re.findall(r"\]\(([^)#]+)\)", text)
    paths = re.findall(r"`((?:saelab|apps|tests|tools|notebooks)/[\w./-]+)`", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_every_public_name_can_be_imported():
    for name in dir(saelab):
        assert getattr(saelab, name) is not None


@pytest.mark.slow
def test_readmes_python_runs(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "readme" / "features.h5").is_file()

"""The files around the code say the same as the code."""

import re

import yaml
from requirements import PROJECT
from sources import ROOT


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_the_version_is_one():
    assert read("CITATION.cff")["version"] == PROJECT["version"]
    assert f"becomes {PROJECT['version']}." in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_runs_what_ci_runs_on_each_python_that_is_supported():
    job = read(".github/workflows/ci.yml")["jobs"]["run"]
    assert job["steps"][-1]["run"].endswith(".ci/run")
    pythons = job["strategy"]["matrix"]["python"]
    least, below = (part[-2:] for part in PROJECT["requires-python"].split(","))
    assert pythons == [f"3.{minor}" for minor in range(int(least), int(below))]


def test_commits_are_checked_by_tools_that_make_installs():
    (local,) = read(".pre-commit-config.yaml")["repos"]
    tools = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in local["hooks"]}
    developers = {need.partition(">")[0] for need in PROJECT["optional-dependencies"]["dev"]}
    assert {tool.replace("lint-imports", "import-linter") for tool in tools} <= developers


def test_the_page_of_installing_has_every_extra_and_its_packages():
    rows = re.findall(
        r"^\| `saelab\[(\w+)\]` \|[^|]*\|([^|]*)\|",
        (ROOT / "docs/install.md").read_text(),
        re.MULTILINE,
    )
    extras = PROJECT["optional-dependencies"]
    own = {name: set() if name == "all" else set(direct(extras[name])) for name, _ in rows}
    assert {name: set(filter(None, cell.strip().split(", "))) for name, cell in rows} == own
    assert set(own) == set(extras) - {"test", "dev", "docs"}


def direct(requirements):
    for need in requirements:
        if not need.startswith("saelab["):
            yield re.split(r"[<>=;\s]", need)[0]


def test_the_container_installs_extras_that_exist():
    text = (ROOT / "Dockerfile").read_text()
    extras = text.partition("${wheel}[")[2].partition("]")[0].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])


def test_the_container_keeps_the_bytecode_that_pip_makes():
    text = (ROOT / "Dockerfile").read_text()
    assert "--no-compile" not in text
    assert "PYTHONDONTWRITEBYTECODE" not in text

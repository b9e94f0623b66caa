"""`--version`, `doctor` and fish's completion say what is there."""

import py_compile
import re
import shutil
import sys

import pytest

from saelab.cli import VERBS, doctor, gpus, main
from saelab.cli.completion import commands
from saelab.cli.doctor import PARTS, slow_start
from saelab.cli.gpus import Gpu, find_gpus, told
from saelab.cli.requirements import Requirement, requirements
from saelab.provenance import commit

H200 = Gpu("NVIDIA H200", 140 << 30, 141 << 30)


def test_version_has_commit_and_device(capsys, monkeypatch):
    monkeypatch.setattr(gpus, "find_gpus", lambda: [H200, H200])
    assert main(["--version"]) == 0
    line = capsys.readouterr().out
    assert re.fullmatch(r"saelab \S+ \(.*Python 3\.\d+\.\d+, 2 x NVIDIA H200\)\n", line)
    assert (commit() or "")[:12] in line


@pytest.mark.parametrize("library", ["libnone.so.1", "libc.so.6"])
def test_without_a_driver_there_is_no_gpu(library):
    assert find_gpus(library) == []
    assert told([]) == "cpu"
    assert told([H200, Gpu("A", 0, 0), H200]) == "2 x NVIDIA H200, 1 x A"


@pytest.mark.parametrize(
    ("version", "bounds", "fits"),
    [
        ("2.13.0+cpu", ">=2.11", True),
        ("2.9", ">=2.11", False),
        ("4.0.0rc1", "<4,>=3.57", False),
        ("3.60.1", "<4,>=3.57", True),
        (None, "", False),
    ],
)
def test_versions_are_compared_as_numbers(version, bounds, fits):
    assert Requirement("x", bounds, "", version).fits is fits


def test_requirements_are_those_of_the_metadata():
    found = {one.package: one for one in requirements() if one.extra not in doctor.NOT_ASKED}
    assert found["torch"].extra == ""
    assert found["openai"].extra == "explain"
    assert all(one.fits for one in found.values() if one.version is not None)
    assert requirements("no-such-package") == []


def test_every_part_is_of_verbs_and_of_packages_that_are_required():
    known = {one.package for one in requirements()}
    for part in PARTS:
        assert set(part.verbs.split(" ")) <= VERBS.keys()
        assert set(part.packages) <= known


def test_a_whole_machine_is_well(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out
    assert "free at" in out


@pytest.mark.parametrize(
    ("change", "said", "code"),
    [
        ({"missing": "torch"}, "broken: torch is missing, which every verb needs", 1),
        ({"missing": "streamlit"}, "(pip install 'saelab[app]'); verbs: browse, publish", 0),
        ({"old": "torch"}, "broken: torch 1.0 is installed, and saelab needs >=2.11", 1),
        ({"gpus": [H200]}, "broken: there is a GPU, but torch", 1),
        ({"disk": 5}, "broken: 5 B of disk is free", 1),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(change, said, code, capsys, monkeypatch):
    if "gpus" in change and shutil.which("nvidia-smi"):
        pytest.skip("torch sees this machine's GPU")
    versions = {"missing": None, "old": "1.0"}
    changed = next(((change[k], v) for k, v in versions.items() if k in change), ("", ""))
    optional = {"streamlit": "app"}
    found = [
        Requirement(one.package, one.bounds, optional.get(one.package, one.extra), version)
        for one in requirements()
        for version in [changed[1] if one.package == changed[0] else one.version]
    ]
    monkeypatch.setattr(doctor, "requirements", lambda: found)
    monkeypatch.setattr(doctor, "find_gpus", lambda: change.get("gpus", []))
    monkeypatch.setattr("saelab.resources.free_bytes", lambda _: change.get("disk", 1 << 40))
    assert main(["doctor"]) == code
    assert said in capsys.readouterr().out


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package without bytecode, which Python could write."""
    (tmp_path / "large.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    assert slow_start(["large", "no_such_package"]) is None
    return tmp_path / "large.py"


def test_sources_are_compiled_again_only_where_bytecode_is_neither_there_nor_kept(
    package, monkeypatch
):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    said = slow_start(["large"])
    assert said is not None
    assert said.endswith("unset PYTHONDONTWRITEBYTECODE.")
    py_compile.compile(str(package))
    assert slow_start(["large"]) is None


def test_a_place_that_takes_no_bytecode_is_named_with_another(package, monkeypatch):
    monkeypatch.setattr(sys, "pycache_prefix", f"{package}/below")
    said = slow_start(["large"])
    assert said is not None
    assert f"cannot be written to {package}/below" in said
    assert said.endswith("set PYTHONPYCACHEPREFIX to a directory that stays.")


def test_doctor_says_what_makes_each_start_slow(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "slow_start", lambda: "each start compiles.")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "\nslow: each start compiles.\n" in out
    assert "Everything" not in out


def test_fish_completes_every_verb_and_option(capsys):
    assert main(["completion", "fish"]) == 0
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert all(line.startswith("complete -c saelab -n ") for line in lines)
    # Outside of \\' every quotation mark opens or closes.
    assert all(line.replace("\\'", "").count("'") % 2 == 0 for line in lines)
    for path, command in commands():
        verb, _, choice = path.partition(" ")
        assert f" -a {choice or verb} " in text
        within = f"'__fish_seen_subcommand_from {verb}"
        own = [line for line in lines if within in line and (choice in line)]
        for option in command.options:
            for name in option.names:
                assert any(f" -l {name[2:]}" in line for line in own), (path, name)

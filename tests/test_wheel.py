"""What `pip install saelab` brings is whole, and works in an empty directory."""

import configparser
import email
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest
from requirements import PROJECT, packages
from sources import ROOT

BUILD = "import sys; from setuptools import build_meta as b; _, out = sys.argv; "
BUILD += "b.build_wheel(out); b.build_sdist(out)"
PACKAGES = {"saelab": ROOT / "saelab", "feature_browser": ROOT / "apps" / "feature_browser"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist of a copy of the tree, made without a network."""
    copy = tmp_path_factory.mktemp("copy") / "saelab"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("saelab", "apps", "docs", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-c", BUILD, str(out)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def sources():
    """The files of the packages, by their names in a wheel."""
    for package, root in PACKAGES.items():
        for path in root.rglob("*"):
            kept = path.is_file() and "__pycache__" not in path.parts and path.suffix != ".png"
            if kept:
                yield f"{package}/{path.relative_to(root).as_posix()}"


def test_the_wheel_has_every_file_of_the_packages_and_no_other(built):
    names = zipfile.ZipFile(built[0]).namelist()
    assert {name for name in names if ".dist-info/" not in name} == set(sources())


def test_the_wheel_says_what_it_needs_and_what_it_runs(built):
    wheel = zipfile.ZipFile(built[0])
    (place,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    meta = email.message_from_bytes(wheel.read(f"{place}/METADATA"))
    assert meta["Version"] == PROJECT["version"]
    assert set(meta.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    core = {line for line in meta.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert set(packages(core)) == set(packages(PROJECT["dependencies"]))
    points = configparser.ConfigParser()
    points.read_string(wheel.read(f"{place}/entry_points.txt").decode())
    assert points["console_scripts"]["saelab"] == "saelab.cli:command"


def test_the_sdist_builds_and_documents_itself(built):
    with tarfile.open(built[1]) as sdist:
        names = sdist.getnames()
    inside = {name.partition("/")[2] for name in names}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "docs/verbs.md"} <= inside
    assert "saelab/lm/tiny/weights/model.safetensors" in inside


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The scripts of a new environment with the wheel; other packages are those of this one."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
    (Path(site) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    command = [*pip, "install", "--quiet", "--no-index", "--no-deps", "--ignore-installed"]
    subprocess.run([*command, str(built[0])], check=True)
    return home / "bin"


PIPELINE = """
import pathlib, sys, saelab
from saelab.cli import main

assert sys.prefix in saelab.__file__, saelab.__file__
site = "blocks.2.hook_resid_post"
harvest = ["harvest", "--model", "tiny", "--text", "tiny", "--sites", site, "--n-tokens", "4000"]
train = ["train", "topk", "--activations", "store", "--site", site, "--d-sae", "64", "--k", "4"]
train += ["--n-tokens", "4000", "--batch-size", "200", "--lr", "1e-2", "--out", "runs/topk"]
for line in ([*harvest, "--out", "store"], train, ["features", "runs/topk", "--n-tokens", "2000"]):
    assert main(line) == 0
"""


@pytest.mark.slow
def test_an_installed_saelab_trains_and_browses_in_an_empty_directory(installed, tmp_path):
    run(installed / "python", "-c", PIPELINE, cwd=tmp_path)
    assert (tmp_path / "runs" / "topk" / "features.h5").is_file()
    browse(installed, tmp_path)


@pytest.mark.exhaustive
def test_an_installed_saelab_runs_its_demo_in_an_empty_directory(installed, tmp_path):
    run(installed / "saelab", "demo", cwd=tmp_path)
    browse(installed, tmp_path)


def alone():
    """The environment without what points to this checkout."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


def run(program, *arguments, cwd):
    command = [str(program), *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=alone(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def browse(installed, directory):
    """`saelab browse` answers, until it is stopped, and says one line: where."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(installed / "saelab"), "browse", "runs", "--port", str(port), "--no-open"]
    said = directory / "said.txt"
    with (
        said.open("w") as log,
        subprocess.Popen(command, cwd=directory, env=alone(), stdout=log, stderr=log) as server,
    ):
        try:
            for _ in range(600):
                assert server.poll() is None, "the server ended"
                try:
                    address = f"http://127.0.0.1:{port}/_stcore/health"
                    with urllib.request.urlopen(address, timeout=5) as answer:
                        assert answer.status == 200
                        assert said.read_text() == f"Open http://127.0.0.1:{port}\n"
                        return
                except OSError:
                    time.sleep(0.1)
            pytest.fail("the server does not answer")
        finally:
            server.terminate()

"""CONTRIBUTING's variant in a package of its own has what a built-in one has; what is refused."""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from conftest import small_config

from saelab.cli import main
from saelab.config import UsageError
from saelab.sae.storage import load_sae, save_sae
from saelab.sae.topk import TopK, TopKConfig
from saelab.sae.variants import REGISTRY, register_variant, sized, variant, variants
from saelab.testing.variant_contract import *  # noqa: F403 - the tests themselves
from saelab.testing.variant_contract import rows
from saelab.training.config import TrainConfig
from saelab.training.run import Run
from saelab.training.sweep import read_sweep

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"```(python|toml)\n(.*?)```", TEXT, re.DOTALL)
(_, CODE), (_, ENTRY), (_, SUITE) = BLOCKS
FORMS = eval(SUITE.split("FORMS = ")[1])
NAMED, PLACE = re.findall(r'^(\w+) = "(.*)"$', ENTRY, re.MULTILINE)[0]


OTHERS = {"activations": "store", "site": "x", "n_tokens": 1}


def install(directory: Path, module: str, code: str, **points: str) -> None:
    """As pip leaves a package: its module, and the entry points among its metadata."""
    (directory / f"{module}.py").write_text(code)
    info = directory / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = [f"{name} = {place}\n" for name, place in points.items()]
    (info / "entry_points.txt").write_text("[saelab.variants]\n" + "".join(lines))


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """A directory of packages; what they bring is forgotten afterwards."""
    (tmp_path / "packages").mkdir()
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "packages")
        REGISTRY.forget()
        patch.setattr(REGISTRY, "registered", {})
        yield tmp_path / "packages"
        for name in ("tied_sae", "broken_sae"):
            sys.modules.pop(name, None)
    REGISTRY.forget()


@pytest.fixture(autouse=True)
def tied(packages):
    install(packages, "tied_sae", CODE, **{NAMED: PLACE})
    importlib.invalidate_caches()
    return variant("tied")


def run(*arguments):
    return main([str(a) for a in arguments])


def test_it_is_a_subcommand_that_trains_saves_and_loads(small_store, tmp_path, capsys, tied):
    config = small_config(small_store, n_tokens=300)
    options = [
        part
        for name in ("site", "n_tokens", "batch_size", "activations")
        for part in (f"--{name.replace('_', '-')}", getattr(config, name))
    ]
    out = tmp_path / "tied"
    assert run("train", "tied", *options, "--d-sae", 48, "--out", out, "--device", "cpu") == 0
    assert type(Run(out).config.sae) is tied
    assert type(Run(out).load_sae()).__name__ == "Tied"
    with pytest.raises(SystemExit):
        run("train", "tied", "--help")
    assert "Weight of the sum of the codes" in " ".join(capsys.readouterr().out.split())


def test_sweeps_and_bench_know_it(small_store, tmp_path, tied):
    base = small_config(small_store).model_dump(mode="json") | {"sae": {"variant": "tied"}}
    file = tmp_path / "sweep.json"
    grid = {"sae.d_sae": [8, 16], "sae.l1_coefficient": [0.1]}
    file.write_text(json.dumps({"base": base, "grid": grid}))
    assert {type(c.sae) for c in read_sweep(file).values()} == {tied}
    assert sized("tied", 64, 8) == tied(d_sae=64)
    assert list(variants())[-1] == "tied"


def test_where_its_package_is_missing_its_files_say_which_it_is(packages, tmp_path, tied):
    sae = tied(d_sae=8).build(4)
    save_sae(sae, tmp_path / "tied.safetensors")
    (packages / "tied_sae-1.0.dist-info" / "entry_points.txt").write_text("")
    REGISTRY.forget()
    with pytest.raises(UsageError, match=r"variant 'tied' from 'tied_sae'.*install that package"):
        load_sae(tmp_path / "tied.safetensors")
    with pytest.raises(ValueError, match=r"no variant 'tied'.*or install the package that has it"):
        TrainConfig.model_validate({**OTHERS, "sae": {"variant": "tied", "d_sae": 8}})
    register_variant(tied)
    assert torch.equal(load_sae(tmp_path / "tied.safetensors").W_dec, sae.W_dec)


def test_a_package_that_cannot_be_imported_is_told_and_harms_nothing(packages, capsys):
    install(packages, "broken_sae", "import no_such_module\n", broken="broken_sae:Config")
    REGISTRY.forget()
    assert "tied" in variants()
    told = capsys.readouterr().err
    assert "'broken' of the package broken_sae is left out: No module named" in told
    with pytest.raises(UsageError, match=r"no variant 'broken' \(broken_sae has it.*No module"):
        variant("broken")


class Inheriting(TopKConfig):
    """Says nothing of its name."""


class Renamed(TopKConfig):
    variant: Literal["topk"] = "topk"


class Further(TopK):
    """Another SAE of the same options."""


def test_a_subclass_with_the_name_of_another_is_refused_wherever_it_could_be_saved(tmp_path):
    made = Inheriting(d_sae=8, k=2)
    message = "Inheriting inherits the name 'topk' of TopKConfig"
    with pytest.raises(UsageError, match=message):
        register_variant(Inheriting)
    with pytest.raises(UsageError, match=message):
        save_sae(made.build(4), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate({**OTHERS, "sae": made})
    with pytest.raises(UsageError, match=r"Renamed has the name 'topk' of saelab\.sae\.topk"):
        register_variant(Renamed)
    with pytest.raises(UsageError, match="would be loaded as TopK, which it derives from"):
        save_sae(Further(TopKConfig(d_sae=8, k=2), 4), tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_a_class_that_nobody_registered_is_refused_with_the_remedy(tied):
    class TiedConfig(tied):
        variant: Literal["tied"] = "tied"

    with pytest.raises(ValueError, match=r"call saelab.register_variant\(TiedConfig\)"):
        TrainConfig.model_validate({**OTHERS, "sae": TiedConfig(d_sae=8)})


def test_a_notebooks_cell_may_run_again():
    space: dict[str, Any] = {"__name__": "notebook"}
    for number in range(2):
        exec(CODE.replace('"tied"', '"cell"'), space)
        register_variant(space["TiedConfig"])
        assert variant("cell") is space["TiedConfig"], number
    assert rows().shape == (64, 12)

"""What loads an SAE needs no extra; all else names, in one sentence, the extra that it lacks."""

import json
import re
import subprocess
import sys

import pytest
import without
from requirements import PROJECT, packages

from saelab.cli import NEEDS, VERBS
from saelab.extras import EXTRAS


@pytest.mark.parametrize("package", EXTRAS)
def test_an_extra_brings_the_package_it_is_named_for(package):
    extras = PROJECT["optional-dependencies"]
    assert package in packages(extras[EXTRAS[package][0]])
    assert package in packages(extras["all"])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a process says that finds none of the optional packages."""
    command = [sys.executable, without.__file__]
    directory = tmp_path_factory.mktemp("bare")
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((directory / "found.json").read_text())


def test_an_sae_loads_without_any_extra(found):
    assert found["loaded"] == "TopK"
    assert found["names"]["load_sae"] == found["names"]["load_foreign_sae"] == ""


def extra(sentence):
    """The extra that the sentence tells to install; there is one sentence, on one line."""
    assert sentence.count("\n") <= 1
    (name,) = re.findall(r"is not installed: pip install 'saelab\[(\w+)\]'", sentence)
    return name


def test_every_verb_runs_or_says_what_it_lacks(found):
    assert set(found["verbs"]) == set(VERBS)
    for verb, (code, errors) in found["verbs"].items():
        if verb in ("show", "export", "completion", "doctor"):
            assert code == 0, errors
        else:
            wanted = EXTRAS[NEEDS[verb][0]][0] if verb in NEEDS else "train"
            assert (code, extra(errors)) == (2, wanted), verb
            assert errors.startswith(f"saelab {verb}: ")


def test_help_needs_no_extra(found):
    assert all(code == 0 for code, _ in found["help"].values())


def test_every_public_name_works_or_says_what_it_lacks(found):
    lacking = {name: extra(said) for name, said in found["names"].items() if said}
    assert set(lacking.values()) == {"train"}
    assert extra(found["load_language_model"]) == "lm"
    assert extra(found["figure"]) == "figures"


def test_arrays_train_and_are_measured_without_a_language_model(found):
    assert found["train"][0] == 0, found["train"][1]
    assert found["evaluate"][0] == 0, found["evaluate"][1]

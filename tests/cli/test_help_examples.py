"""What the examples of every verb's help say can be typed, and what it trains is possible."""

import shlex
import textwrap
from typing import Any

import pytest

from saelab.bench.budget import BudgetSetting, choose
from saelab.bench.pace import pace_of_kind
from saelab.cli.completion import commands
from saelab.cli.parse import read
from saelab.cli.train import TrainArguments
from saelab.cli.train_budget import seconds_of
from saelab.sites import parts_of
from saelab.training.config import TrainConfig
from saelab.training.untrained import untrained_sae

COMMANDS = dict(commands())
VARIANTS = [path for path in COMMANDS if path.startswith("train ") and path != "train sweep"]
WIDTH, ROWS = 128, 500_000
"""Of the tiny model's rows, and how many `saelab harvest --help` records of them."""


def examples(path):
    """The lines of a command's examples that are saelab's own."""
    for block in textwrap.dedent(COMMANDS[path].about).split("\n\n"):
        if block.startswith("    saelab"):
            lines = textwrap.dedent(block).replace("\n    ", " ").split("\n")
            yield from (line for line in lines if line.startswith("saelab "))


def typed(line) -> tuple[str, dict[str, Any]]:
    """The verb of an example, and the values of its options."""
    words = shlex.split(line.partition(" > ")[0])[1:]
    n = max(n for n in range(3) if " ".join(words[:n]) in COMMANDS)
    path = " ".join(words[:n])
    return path, read(COMMANDS[path], words[n:])


def trained(variant, values):
    """What `saelab train VARIANT` trains with these options."""
    values = {key: value for key, value in values.items() if key not in TrainArguments.model_fields}
    options = {key: values.pop(key) for key in list(values) if key in TrainConfig.model_fields}
    return TrainConfig.model_validate({**options, "sae": {**values, "variant": variant}})


@pytest.mark.parametrize("path", COMMANDS)
def test_the_examples_of_a_help_text_can_be_typed(path):
    found = list(examples(path))
    assert any(line.startswith(COMMANDS[path].name) for line in found)
    for line in found:
        typed(line)


@pytest.mark.parametrize("path", VARIANTS)
def test_the_examples_of_a_variant_train_it_on_what_an_example_records(path):
    variant = path.split()[1]
    found = [typed(line) for line in [*examples("harvest"), *examples(path)]]
    stores = {values["out"]: values for verb, values in found if verb == "harvest"}
    trainings = [values for verb, values in found if verb == path]
    assert trainings
    for values in trainings:
        if "budget" in values:
            setting = BudgetSetting(variant, WIDTH, WIDTH, ROWS, {})
            chosen = choose(seconds_of(values["budget"]), setting, pace_of_kind("h100"))
            values |= {"d_sae": chosen.d_sae, "n_tokens": chosen.n_tokens}
        config = trained(variant, values)
        config.check()
        store = stores[config.activations]
        assert {*parts_of(config.site), *parts_of(config.written_site)} <= {*store["sites"]}
        assert store.get("gradients", False) or not config.sae.needs_gradient
        assert config.n_sites > 1 or config.sae.joint_problem
        assert config.target_site or not config.sae.joint_target
        widths = [WIDTH] * config.n_sites
        untrained_sae(config, sum(widths), sum(widths), widths)

"""An SAE in every layout of another tool goes through every verb, on its own model's architecture.

The SAEs reconstruct their sites, so that a misread file shows as a large FVU.
"""

import json

import pytest
import torch
from cli.test_train_cli import run
from lm.architectures import PROMPT, WORDS, save_architecture
from sae.interop.formats import FORMATS
from sae.interop.layouts import LAYOUTS, Rows

from saelab.activations.store import ActivationStore
from saelab.training.run import Run

CPU = ("--device", "cpu")
QUICK = {"Gemma Scope 2, affine transcoder", "circuit-tracer, CLT"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A store of some sites of a random model, by the model's architecture."""
    directories: dict[str, str] = {}

    def made(layout, directory):
        if layout.model not in directories:
            place = tmp_path_factory.mktemp("model")
            directories[layout.model] = save_architecture(place, layout.model)
        words = torch.randint(len(WORDS), (9000,), generator=torch.Generator().manual_seed(0))
        text = directory / "text.txt"
        text.write_text(" ".join(WORDS[word] for word in words))
        hooks = dict.fromkeys("+".join(layout.sites).split("+"))
        assert run("harvest", "--model", directories[layout.model], "--text", text, "--sites",
                   *hooks, "--n-tokens", 2400, "--context-length", 16, "--dtype", "f32",
                   "--out", directory / "store", *CPU) == 0  # fmt: skip
        return ActivationStore(directory / "store")

    return made


def rows_of(store, sites):
    ends = (sites[0].split("+"), sites[-1].split("+"))
    return Rows(*(tuple(store.site(hook).rows(0, 2000) for hook in hooks) for hooks in ends))


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(one, id=one.name, marks=[] if one.name in QUICK else pytest.mark.exhaustive)
        for one in LAYOUTS
    ],
)
def test_an_sae_of_every_layout_goes_through_every_verb(layout, stored, tmp_path, capsys):
    store = stored(layout, tmp_path)
    source = tmp_path / "files"
    source.mkdir()
    layout.write(source, rows_of(store, layout.sites))
    named = len(layout.source.split("/")) > 2
    given = [layout.source, "--from", source] if named else [source / layout.source]
    out = tmp_path / "run"
    assert run("import", *given, "--activations", store.path, "--out", out, *layout.given) == 0
    assert (Run(out).config.site, Run(out).config.written_site) == (
        layout.sites[0],
        layout.sites[-1],
    )
    capsys.readouterr()
    assert run("check", out, "--n-tokens", 200, "--json", *CPU) == 0
    fits = {fit["name"]: fit["here"] for fit in json.loads(capsys.readouterr().out)["fits"]}
    assert fits["fvu"] < layout.loss
    assert run("evaluate", out, "--suite", "core", "--n-tokens", 100, *CPU) == 0
    assert run("features", out, "--n-tokens", 200, *CPU) == 0
    assert run("features", out, "--latents", 1, 3, "--n-tokens", 200, *CPU) == 0
    steered = run("steer", out, "--latents", 3, "--prompt", PROMPT, "--n-tokens", 4, *CPU)
    assert steered == (2 if "+" in layout.sites[0] else 0)  # What reads several sites is refused.
    # A crosscoder's latents write before and after what they read.
    traced = run("circuit", out, "--prompt", PROMPT, *CPU)
    assert traced == (2 if "crosscoder" in layout.name else 0)
    assert run("verify", out) == 0
    assert run("push", out, "some/one", "--dry-run", "--out", tmp_path / "card") == 0
    for form in layout.exports:
        assert run("export", out, "--to", form, "--out", tmp_path / form) == 0


def test_every_layout_of_the_documentation_is_tried():
    assert {layout.name.partition(", ")[0] for layout in LAYOUTS} == {
        known.name.partition(", ")[0] for known in FORMATS
    }

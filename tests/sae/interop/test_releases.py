"""A name finds its row of the table, and what the row says reaches the SAE."""

from typing import Any

import numpy as np
import pytest
import torch
from sae.interop.cases import (
    PLAIN,
    pick,
    refusal,
    sae_lens_directory,
    weights,
    write_json,
)

from saelab.sae.interop import releases, sae_lens_releases
from saelab.sae.interop.hints import Hints
from saelab.sae.interop.releases import find_release, read_releases, search
from saelab.sae.interop.sources import locate, read_located

SCOPE = "gemma-scope/2b-pt/res/20/16k/71"


def test_words_of_a_name_become_files():
    known = find_release("gemma-scope-2/270m-pt/transcoder-all/12/16k/big-affine")
    folder = "transcoder_all/layer_12_width_16k_l0_big_affine"
    assert known.repo == "google/gemma-scope-2-270m-pt"
    assert known.files == (f"{folder}/params.safetensors",)
    assert (known.read, known.model) == (folder, "google/gemma-3-270m")
    # A table's word may hold words in its turn.
    odd = find_release("openai/gpt2-small/resid-post/3/32k")
    assert odd.read == "v5_32k_layer_3.pt"


def test_every_row_says_what_it_needs_to():
    for row in releases.releases():
        assert row.licence
        assert row.about
        name = row.name
        for word, values in row.values.items():
            name = name.replace(f"{{{word}}}", "1" if values == "number" else next(iter(values)))
        known = find_release(name)
        texts = [*known.files, *known.optional, known.read, known.model, known.site, known.target]
        assert not any("{" in (text or "") for text in texts)
        assert known.repo.count("/") == 1


def test_figures_may_come_from_the_name():
    assert find_release(SCOPE).figures == {"l0": (71, 71)}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gemma-scope-2/270m-pt/resid/12/16k/huge", "'huge' is none of small, medium, big"),
        ("gemma-scope-2/270m-pt/attn/12/16k/huge", "'huge' is none of small, medium, big"),
        ("gemma-scope-2/270m-pt/heads/12/16k/big", "resid-all, mlp, mlp-all, attn, attn-all, tr"),
        ("gemma-scope-2/270m-pt/resid/x/16k/big", "'x' is no number, which {layer} must be"),
        ("gemma-scope-2/270m-pt", "gemma-scope-2/{model}/{kind}/{layer}/{width}/{l0} or"),
        ("nothing-like-it", "`saelab import list` shows all"),
    ],
)
def test_a_name_that_means_nothing_is_told_what_does(name, words):
    assert words in refusal(lambda: find_release(name))
    assert words in refusal(lambda: locate(name))


def test_rows_are_found_by_words():
    assert [row.name.split("/")[0] for row in search(["r1", "llama"])] == [
        "llama-scope-r1",
        "deepseek-r1-llama-8b",
    ]
    assert search(["gemma", "goodfire"]) == []


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{name: a/{b}, repo: x/y, files: [z], licence: l, about: a}", "b is in its name"),
        ("{name: a, repo: x/y, files: ['{c}'], licence: l, about: a}", "c is in its name"),
        ("{name: a, repo: x/y, files: [], licence: l, about: a}", "files"),
        ("{name: a, repo: x/y, files: [z], licence: l, about: a, colour: red}", "colour"),
        ("{name: a, repo: x/y, files: [z], about: a}", "licence"),
    ],
)
def test_a_malformed_row_is_named(row, words):
    row = row.replace("a/{b}", "'a/{b}'")
    assert words in refusal(lambda: read_releases(f"- {row}"))


def test_a_release_is_read_from_a_folder_with_its_files(tmp_path):
    folder = tmp_path / "layer_20" / "width_16k" / "average_l0_71"
    assert "has no layer_20/width_16k/average_l0_71/params.npz" in refusal(
        lambda: locate(SCOPE, folder=tmp_path)
    )
    folder.mkdir(parents=True)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in weights().items()}
    np.savez(folder / "params.npz", **arrays)
    located = locate(SCOPE, folder=tmp_path)
    sae = read_located(located, Hints())
    assert (sae.model, sae.hook) == ("google/gemma-2-2b", "blocks.20.hook_resid_post")
    assert SCOPE in located.origin


def test_what_is_known_beside_the_file_reaches_the_sae(tmp_path):
    path = sae_lens_directory(
        tmp_path / "blocks.3.hook_resid_pre", pick(weights(), *PLAIN), metadata={}
    )
    located = locate("gpt2-small/res-jb/3", folder=path.parent)
    sae = read_located(located, Hints())
    assert (sae.row_norm, sae.hook, sae.model) == ("centre", "blocks.3.hook_resid_pre", "gpt2")


def test_sae_lens_registry_is_read_as_data(tmp_path, monkeypatch):
    package = tmp_path / "sae_lens"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    table = {
        "jb": {
            "repo_id": "a/b", "model": "gpt2", "conversion_func": None,
            "config_overrides": {"model_from_pretrained_kwargs": {"center_writing_weights": True}},
            "saes": [{"id": "one", "path": "own", "l0": 7, "variance_explained": 0.75}],
        },
        "t": {"repo_id": "a/c", "conversion_func": "temporal", "saes": [{"id": "x", "path": "x"}]},
    }  # fmt: skip
    write_json(package / "pretrained_saes.yaml", table)  # JSON is YAML
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        sae_lens_releases, "_sae_lens_table", sae_lens_releases._sae_lens_table.__wrapped__
    )
    sae_lens_directory(tmp_path / "own", pick(weights(), *PLAIN), metadata={})
    located = locate("saelens:jb/one", folder=tmp_path)
    assert read_located(located, Hints()).row_norm == "centre"
    assert located.known is not None
    assert located.known.figures == {"l0": (7, 7), "fvu": (0.25, 0.25)}
    assert "no release 'jx'; jb is one" in refusal(lambda: locate("saelens:jx/one"))
    assert "has no SAE 'two'; it has 1, such as one" in refusal(lambda: locate("saelens:jb/two"))
    assert "temporal SAE" in refusal(lambda: locate("saelens:t/x"))


def test_a_path_on_the_hub_is_a_file_or_a_folder_of_one_sae(tmp_path):
    torch.save(pick(weights(), *PLAIN), tmp_path / "layer0.pt")
    (tmp_path / "config.yaml").write_text("a: b")
    located = locate("hf:a/b/layer0.pt", folder=tmp_path)
    assert located.path == tmp_path / "layer0.pt"
    assert locate("hf:a/b", folder=tmp_path).path == tmp_path / "layer0.pt"
    (tmp_path / "layer1.pt").touch()
    assert "holds 2 files of weights" in refusal(lambda: locate("hf:a/b", folder=tmp_path))
    sae_lens_directory(tmp_path / "odd.pt", pick(weights(), *PLAIN))
    assert locate("hf:a/b/odd.pt", folder=tmp_path).path == tmp_path / "odd.pt"
    assert "leaves its repository" in refusal(lambda: locate("hf:a/b/../c"))
    assert "is not hf:owner/repo" in refusal(lambda: locate("hf:a"))


def test_a_path_is_no_name(tmp_path):
    assert "does not exist" in refusal(lambda: locate("./gone"))
    assert "is empty; name a file" in refusal(lambda: locate(""))
    (tmp_path / "a").touch()
    told = refusal(lambda: locate(str(tmp_path / "a"), revision="main"))
    assert "--revision says nothing about" in told

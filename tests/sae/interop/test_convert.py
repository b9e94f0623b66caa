"""Other tools' SAEs as saelab's variants, and back, with the same codes."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from saelab.config import UsageError
from saelab.sae.interop.convert import (
    from_foreign,
    load_foreign_sae,
    save_dictionary_learning,
    save_sae_lens,
    to_foreign,
)
from saelab.sae.interop.dictionary_learning import read_dictionary_learning
from saelab.sae.interop.dictionary_learning_write import write_dictionary_learning
from saelab.sae.interop.foreign import ForeignSAE, Gate
from saelab.sae.storage import load_sae, save_sae
from saelab.sae.variants import SAE_CONFIG

D_IN, D_SAE = 6, 10


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def foreign(**rule):
    values: dict[str, Any] = {
        "W_enc": randn(D_IN, D_SAE, seed=1),
        "W_dec": 2 * randn(D_SAE, D_IN, seed=2),
        "b_enc": randn(D_SAE, seed=3),
        "b_dec": randn(D_IN, seed=4),
        "subtract_b_dec": True,
        "source": "a test",
    }
    return ForeignSAE(**(values | rule))


RULES = {
    "topk": {"k": 3},
    "abs-topk": {"k": 3, "signed": True},
    "jumprelu": {"threshold": randn(D_SAE, seed=5).abs()},
    "standard": {"threshold": torch.zeros(D_SAE)},
    "gated": {"gate": Gate(0.5 * randn(D_SAE, seed=7), randn(D_SAE, seed=8))},
    "batch-topk": {"threshold": torch.full((D_SAE,), 0.7), "batch_k": 2.5},
    "matryoshka": {
        "threshold": torch.full((D_SAE,), 0.7),
        "batch_k": 3,
        "prefixes": (2, 5, 10),
    },
}


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("variant", RULES)
def test_the_variant_has_the_files_codes_and_reconstructions(variant, subtract):
    given = foreign(**RULES[variant], subtract_b_dec=subtract)
    sae = from_foreign(given)
    if subtract or variant not in ("batch-topk", "matryoshka"):
        assert sae.config.model_dump()["variant"] == variant
    x = randn(50, D_IN, seed=6)
    torch.testing.assert_close(sae.encode(x).dense(), given.encode_dense(x))
    torch.testing.assert_close(sae.reconstruct(x), given.reconstruct(x))


@pytest.mark.parametrize("variant", RULES)
def test_there_and_back_changes_nothing(variant):
    given = foreign(**RULES[variant])
    back = to_foreign(from_foreign(given))
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        mine, theirs = getattr(back, name), getattr(given, name)
        assert mine is theirs is None or torch.equal(mine, theirs), name
    names = ("k", "signed", "subtract_b_dec", "prefixes", "batch_k")
    assert [getattr(back, n) for n in names] == [getattr(given, n) for n in names]
    if given.gate is not None:
        assert torch.equal(back.gate.r_mag, given.gate.r_mag)
        assert torch.equal(back.gate.b_gate, given.gate.b_gate)


@pytest.mark.parametrize("save", [save_sae_lens, save_dictionary_learning])
@pytest.mark.parametrize("variant", RULES)
def test_an_exported_sae_loads_again_with_the_same_reconstructions(variant, save, tmp_path):
    sae = from_foreign(foreign(**RULES[variant]))
    if variant == "abs-topk" and save is save_dictionary_learning:
        with pytest.raises(UsageError, match="no SAEs with signed codes; export to SAELens"):
            save(sae, tmp_path / "out")
        return
    save(sae, tmp_path / "out")
    again, x = load_foreign_sae(tmp_path / "out"), randn(50, D_IN, seed=6)
    torch.testing.assert_close(again.encode(x).dense(), sae.encode(x).dense())
    torch.testing.assert_close(again.reconstruct(x), sae.reconstruct(x))
    if variant in ("topk", "jumprelu", "standard", "gated"):
        assert again.config.variant == variant
    save(sae, tmp_path / "out")  # The same files: an export that was interrupted goes on.
    with torch.no_grad():
        sae.W_dec.mul_(2)
    with pytest.raises(UsageError, match="already holds an SAE"):
        save(sae, tmp_path / "out")


def test_what_dictionary_learning_is_told_of_a_run(tmp_path):
    given = replace(foreign(k=3), model="gpt2", hook="blocks.4.hook_resid_post")
    write_dictionary_learning(given, tmp_path)
    back = read_dictionary_learning(tmp_path)
    assert (back.model, back.hook, back.k) == (given.model, given.hook, 3)
    zeros = torch.zeros(D_SAE)
    transcoder = foreign(threshold=zeros, subtract_b_dec=False, transcoder=True)
    with pytest.raises(UsageError, match="has no transcoders"):
        write_dictionary_learning(transcoder, tmp_path / "other")


def test_a_loaded_sae_saves_in_saelabs_own_form(tmp_path):
    sae = from_foreign(foreign(**RULES["matryoshka"]))
    save_sae(sae, tmp_path / "sae.safetensors")
    x = randn(50, D_IN, seed=6)
    assert torch.equal(load_sae(tmp_path / "sae.safetensors").reconstruct(x), sae.reconstruct(x))


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "k-sparse"},
        {"variant": "matching-pursuit", "residual_threshold": 0.5},
        {"variant": "abs-topk", "selection": "batch"},
    ],
)
def test_what_other_tools_do_not_know_is_refused(options, tmp_path):
    sae = SAE_CONFIG.validate_python({"d_sae": D_SAE, "k": 3} | options).build(D_IN)
    with pytest.raises(UsageError, match=f"no architecture for this {options['variant']} SAE"):
        save_sae_lens(sae, tmp_path / "lens")
    assert not (tmp_path / "lens").exists()


@pytest.mark.parametrize("variant", ["hierarchical-topk", "gradient-topk"])
def test_variants_whose_inference_is_top_k_are_exported_as_top_k(variant):
    sae = SAE_CONFIG.validate_python({"d_sae": D_SAE, "k": 3, "variant": variant}).build(D_IN)
    x = randn(50, D_IN, seed=6)
    with torch.no_grad():
        torch.testing.assert_close(to_foreign(sae).reconstruct(x), sae.reconstruct(x))


def test_signed_codes_with_thresholds_are_refused():
    threshold = torch.full((D_SAE,), 0.7)
    with pytest.raises(UsageError):
        from_foreign(replace(foreign(threshold=threshold), signed=True))

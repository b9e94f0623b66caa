"""Every architecture keeps every identity that the checks ask for, and the checks can fail."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from lm.architectures import ARCHITECTURES
from lm.table import checked, line, written
from rest import rest

from saelab.lm.conformance import SITES, check_model, failures, model_findings, plain_pass
from saelab.lm.direct_check import direct_path_error, direct_path_fault
from saelab.sites import Site

WITHOUT_MID = {"GPT-J", "Pythia (GPT-NeoX, parallel)", "Falcon", "CodeGen", "Phi", "Cohere"}
PARALLEL_HAS_NO_MIDDLE = "has no hook 'blocks.0.hook_resid_mid'"


# Of each way that blocks, norms, heads and positions are joined, one; the others are its kin.
SOME = (
    "GPT-2", "GPT-J", "BLOOM", "Pythia (GPT-NeoX, parallel)", "Llama 2", "Mixtral", "Gemma 2",
    "Gemma 3", "OLMo", "OLMo 2", "Granite", "Cohere", "Nemotron", "Mamba",
)  # fmt: skip
NAMES = [*SOME, *rest(*(name for name in ARCHITECTURES if name not in SOME))]


@pytest.mark.parametrize("name", NAMES)
def test_no_check_fails_on_any_architecture(name):
    """And the row of the table in the documentation is what they find."""
    lm, findings = checked(name)
    assert line(name) in written(), "The table of models is stale: run make models."
    assert [(f.about, f.check, f.error) for f in failures(findings)] == []
    assert [Site.of(hook).hook for hook in lm.hooks()] == lm.hooks()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Mamba"])
def test_what_is_refused_is_known_and_the_rest_was_checked(name):
    _, findings = checked(name)
    refused = {(f.about, f.check): f.refusal for f in findings if f.refusal is not None}
    attribution = {("model", f.check) for f in findings if "sum" in f.check}
    for place, reason in refused.items():
        if place in attribution:
            continue
        assert place[0] == "hook_resid_mid"
        expected = PARALLEL_HAS_NO_MIDDLE if name in WITHOUT_MID else "replaced or differentiated"
        assert expected in reason
    assert len(findings) - len(refused) >= 5 + 3 * len(SITES) - 3


def test_mamba_has_its_residual_stream_and_says_what_it_has_not():
    _, findings = checked("Mamba")
    holding = {(f.about, f.check) for f in findings if f.holds}
    assert ("hook_resid_post", "logit effects") in holding
    assert ("model", "blocks add up to the residual") in holding
    assert any("keeps no keys and values" in (f.refusal or "") for f in findings)
    assert any("no hook 'blocks.0.attn.hook_z'" in (f.refusal or "") for f in findings)


def test_the_table_in_the_documentation_has_a_row_for_each_architecture():
    rows = [row.split(" | ")[0].removeprefix("| ") for row in written().splitlines()]
    assert rows == ["architecture", "---", *ARCHITECTURES], "Run make models."


@pytest.mark.parametrize("name", ["Gemma 2", "OLMo 2", "Granite", "Cohere"])
@pytest.mark.parametrize("site", ["blocks.1.hook_resid_post", "blocks.0.attn.hook_z"])
def test_the_formula_of_older_models_is_told_from_the_truth(name, site, monkeypatch):
    """Without the 1 in Gemma's gain, the post-norm or the multiplier, the difference is seen."""
    lm, _ = checked(name)
    assert direct_path_fault(lm, site) is None
    direct = lm.direct
    assert direct.last is not None
    if name == "Granite" and site.endswith("hook_z"):
        monkeypatch.setattr(direct, "_behind", {})
    elif name in ("Granite", "Cohere"):
        monkeypatch.setattr(direct, "slope", 1.0)
    elif site.endswith("hook_z"):
        stages = {
            hook: None if stage is None else replace(stage, gain=torch.ones_like(stage.gain))
            for hook, stage in direct._behind.items()
        }
        monkeypatch.setattr(direct, "_behind", stages)
    else:
        monkeypatch.setattr(direct, "last", replace(direct.last, gain=direct.last.gain - 1))
    assert direct_path_error(lm, site) > 0.1
    assert "contradicts its direct path" in (direct_path_fault(lm, site) or "")


def test_an_unproven_site_has_no_logit_effects_and_says_why(monkeypatch):
    lm, _ = checked("Llama 2")
    site = "blocks.0.hook_mlp_out"
    monkeypatch.setattr(lm._effects, "_faults", {})
    assert lm.direct.last is not None
    monkeypatch.setattr(lm.direct, "last", replace(lm.direct.last, centred=True))
    directions = torch.eye(48, dtype=torch.float64)
    assert lm.logit_effects(site, directions) is None
    assert f"{site} has no logits in" in (lm.why_no_logits(site) or "")


def test_effects_are_those_of_a_stream_that_holds_nothing_else():
    """A second method: the odd part of the model's own head, times the scale of the direction."""
    for name in ("Gemma 3", "OLMo", "Nemotron"):
        lm, _ = checked(name)
        rows = torch.randn(5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        tokens, hook = torch.zeros(5, 1, dtype=torch.long), "blocks.1.hook_resid_post"
        plus, minus = (
            lm.logits(tokens, {hook: lambda _, x=x: x[:, None]})[:, 0] for x in (rows, -rows)
        )
        expected = (plus - minus) / 2 * lm.direct.last.scale(rows)
        expected = expected - expected.mean(-1, keepdim=True)
        torch.testing.assert_close(lm.logit_effects(hook, rows), expected, rtol=1e-4, atol=1e-4)


def test_the_output_of_experts_reaches_the_logits_as_what_it_is():
    lm, _ = checked("Mixtral")
    rows = torch.randn(3, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    values, outputs = (
        lm.logit_effects(f"blocks.0.{h}", rows) for h in ("mlp.hook_post", "hook_mlp_out")
    )
    torch.testing.assert_close(values, outputs)


def test_another_models_hidden_states_fail_the_check(tmp_path):
    from lm.architectures import random_model, save_architecture

    lm, _ = checked("Llama 2")
    path = save_architecture(tmp_path / "other", "Llama 2")
    plain = plain_pass(path, device="cpu", dtype=torch.float64)
    assert failures(list(model_findings(lm, plain))) == []
    off = replace(plain, logits=plain.logits * 1.01, hidden_states=plain.hidden_states[::-1])
    wrong = {f.check for f in failures(list(model_findings(lm, off)))}
    assert wrong == {"logits are transformers'", "hidden states are transformers'"}
    assert random_model("Llama 2").config.num_hidden_layers == 2


def test_a_model_that_sees_later_tokens_fails_the_check(tmp_path):
    from lm.architectures import VOCABULARY, save_tokenizer
    from transformers import BertConfig, BertLMHeadModel

    size: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = BertConfig(**size, num_attention_heads=4, vocab_size=len(VOCABULARY))
    BertLMHeadModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    _, findings = check_model(str(tmp_path), device="cpu")
    assert "no token sees later ones" in {f.check for f in failures(findings)}

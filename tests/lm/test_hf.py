"""The plain transformers back end gives the bridge's activations and gradients."""

from typing import Any

import pytest
import torch
from lm.cases import GROUPED, SHAPE, save

from saelab.config import UsageError
from saelab.lm.direct_check import HasDirectPaths
from saelab.lm.hf import load_hugging_face_model, serves
from saelab.lm.load import load_language_model
from saelab.lm.protocol import LanguageModel
from saelab.lm.reading import ReadsOn

SITES = [
    "hook_resid_pre",
    "hook_resid_post",
    "attn.hook_z",
    "attn.hook_out",
    "hook_attn_out",
    "ln2.hook_out",
    "mlp.hook_in",
    "hook_mlp_out",
    "mlp.hook_out",
    "mlp.hook_post",
]
HOOKS = [f"blocks.{layer}.{site}" for layer in (0, 1) for site in SITES]


@pytest.fixture(scope="session", params=["gpt2", "llama", "qwen3", "gpt_neox"])
def pair(request, checkpoint, tmp_path_factory):
    """The same random model behind both back ends."""
    import transformers

    path = checkpoint
    if request.param != "gpt2":
        path = tmp_path_factory.mktemp(request.param)
        shape: dict[str, Any] = {
            "gpt_neox": SHAPE,
            "llama": GROUPED,
            "qwen3": {**GROUPED, "head_dim": 16},
        }
        config = transformers.CONFIG_MAPPING[request.param](**shape[request.param])
        save(path, checkpoint, config)
    return load_hugging_face_model(str(path), device="cpu"), load_language_model(
        str(path), device="cpu"
    )


@pytest.fixture
def tokens():
    return torch.randint(1, 13, (3, 10), generator=torch.Generator().manual_seed(0))


def test_both_back_ends_tell_the_same_of_the_model(pair):
    ours, bridge = pair
    assert ours.info == bridge.info
    assert {hook: ours.width(hook) for hook in HOOKS} == {h: bridge.width(h) for h in HOOKS}


def test_both_back_ends_capture_the_same(pair, tokens):
    ours, bridge = pair
    expected = bridge.capture(tokens, HOOKS)
    found = ours.capture(tokens, HOOKS)
    assert found.keys() == expected.keys()
    for hook in HOOKS:
        torch.testing.assert_close(found[hook], expected[hook], atol=1e-4, rtol=0)


def test_both_back_ends_differentiate_the_same(pair, tokens):
    ours, bridge = pair
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[1, 6:] = False
    for found, expected in zip(
        ours.gradients(tokens, HOOKS, real), bridge.gradients(tokens, HOOKS, real), strict=True
    ):
        for hook in HOOKS:
            torch.testing.assert_close(found[hook], expected[hook], atol=1e-4, rtol=0)


def test_both_back_ends_give_the_same_logits_with_and_without_edits(pair, tokens):
    """An edit adds a direction in layer 0; what stands behind it is read as the edit left it."""
    ours, bridge = pair
    torch.testing.assert_close(ours.logits(tokens), bridge.logits(tokens), atol=1e-4, rtol=0)
    for hook in HOOKS[: len(SITES)]:
        push = torch.randn(ours.width(hook), generator=torch.Generator().manual_seed(1))
        edits = {hook: lambda x, push=push: x + push}
        reads = [hook, "blocks.1.hook_resid_post"]
        found, expected = (lm.run(tokens, edits=edits, hooks=reads) for lm in pair)
        assert (expected.logits - bridge.logits(tokens)).abs().max() > 1e-3
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)
        for read in reads:
            torch.testing.assert_close(
                found.activations[read], expected.activations[read], atol=1e-4, rtol=0
            )


def test_an_edit_sees_only_the_tokens_that_are_read(checkpoint, tokens):
    """Also at the first use, when the model is tried on tokens of its own."""
    ours, seen = load_hugging_face_model(str(checkpoint), device="cpu"), []
    ours.run(tokens, edits={HOOKS[1]: lambda x: seen.append(x.shape[:2]) or x}).at(...).logits()
    assert seen == [tokens.shape]


def test_an_edit_is_differentiated_through_the_rest_of_the_model(pair, tokens):
    found = []
    for lm in pair:
        push = torch.zeros(lm.width(HOOKS[1]), requires_grad=True)
        out = lm.run(tokens, edits={HOOKS[1]: lambda x, push=push: x + push})
        out.logits[..., 3].sum().backward()
        found.append(push.grad)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_both_back_ends_read_on_the_same(pair, tokens):
    edits = {HOOKS[0]: lambda x: x + 1}
    for lm in pair:
        assert lm.reads_on
    ours, bridge = ([], [])
    for lm, outputs in zip(pair, (ours, bridge), strict=True):
        past = None
        for piece in tokens.split(4, dim=1):
            out, past = lm.read_on(piece, past, edits)
            outputs.append(out.logits)
    torch.testing.assert_close(torch.cat(ours, 1), torch.cat(bridge, 1), atol=1e-4, rtol=0)


def test_both_back_ends_know_the_same_direct_paths(pair):
    ours, bridge = pair
    for hook in HOOKS:
        expected = bridge.why_no_logits(hook)
        assert ours.why_no_logits(hook) == expected
        if expected is not None:
            continue
        directions = torch.randn(3, ours.width(hook), generator=torch.Generator().manual_seed(2))
        for effect in ("logit_effects", "residual_writes"):
            found, wanted = (getattr(lm, effect)(hook, directions) for lm in pair)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_it_has_what_attribution_and_steering_ask_for(pair):
    ours, _ = pair
    assert isinstance(ours, LanguageModel)
    assert isinstance(ours, ReadsOn)
    assert isinstance(ours, HasDirectPaths)
    assert set(ours.hooks()) == set(HOOKS)


def test_the_forward_pass_stops_at_the_last_hook(pair, tokens, monkeypatch):
    ours, _ = pair
    reached = []
    block, _ = ours._modules.points["blocks.1.hook_resid_pre"]
    handle = block.register_forward_pre_hook(lambda *_: reached.append(1))
    ours.capture(tokens, ["blocks.0.hook_resid_post"])
    handle.remove()
    assert reached == []


def test_no_hook_is_left_behind(pair, tokens):
    ours, _ = pair
    ours.capture(tokens, HOOKS)
    modules = ours._model.modules()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_other_sites_are_refused_with_the_remedy(random_lm, checkpoint):
    ours = load_hugging_face_model(str(checkpoint), device="cpu")
    for hook in ("blocks.0.attn.hook_pattern", "blocks.7.hook_resid_post", "hook_embed"):
        with pytest.raises(UsageError, match="--backend transformer-lens"):
            ours.width(hook)


@pytest.mark.parametrize(
    ("hooks", "expected"),
    [(HOOKS, True), (["blocks.0.hook_resid_mid"], False), (["ln_final.hook_scale"], False)],
)
def test_it_says_which_sites_it_serves(checkpoint, hooks, expected):
    assert serves(str(checkpoint), hooks) is expected


def test_it_serves_no_model_that_it_cannot_find(tmp_path):
    assert not serves(str(tmp_path / "nothing"), HOOKS)


def test_it_never_imports_transformer_lens(checkpoint):
    import subprocess
    import sys

    code = (
        "import sys; from saelab.lm.hf import load_hugging_face_model as load; "
        f"load({str(checkpoint)!r}, device='cpu').width('blocks.0.hook_resid_post'); "
        "assert 'transformer_lens' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

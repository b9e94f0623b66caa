"""The lens is the final norm and the unembedding of what a direction writes, and nothing else."""

import pytest
import torch
from analysis.steering.cases import LAST, WORDS, save_checkpoint

from saelab.analysis.steering.lens import lens_tokens, logit_lens
from saelab.config import UsageError


def final(lm, residual):
    """LN_final and unembedding from the weights, in float64."""
    bridge = lm._bridge
    norm = bridge.ln_final
    x = residual.double()
    x = x - x.mean(dim=1, keepdim=True)
    x = x / (x.pow(2).mean(dim=1, keepdim=True) + bridge.cfg.eps).sqrt()
    x = x * norm.weight.double() + norm.bias.double()
    bias = bridge.b_U.double() if bridge.b_U is not None else 0
    return x @ bridge.W_U.double() + bias


@pytest.fixture
def directions():
    return torch.randn(7, 16, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("hook", [LAST, "blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out"])
def test_a_residual_direction_is_normed_and_unembedded_as_it_is(perturbed_lm, directions, hook):
    found = logit_lens(perturbed_lm, hook, directions)
    assert torch.allclose(found.double(), final(perturbed_lm, directions), atol=1e-4)


def test_heads_go_through_w_o_and_mlp_values_through_w_out(perturbed_lm, directions):
    bridge = perturbed_lm._bridge
    W_O = bridge.W_O[1].flatten(0, 1)
    found = logit_lens(perturbed_lm, "blocks.1.attn.hook_z", directions)
    assert torch.allclose(found.double(), final(perturbed_lm, directions @ W_O), atol=1e-3)
    values = torch.randn(3, 64, generator=torch.Generator().manual_seed(6))
    found = logit_lens(perturbed_lm, "blocks.0.mlp.hook_post", values)
    expected = final(perturbed_lm, values @ bridge.W_out[0])
    assert torch.allclose(found.double(), expected, atol=1e-3)


def test_it_ranks_as_the_direct_path_does_but_for_the_final_norm_s_bias(perturbed_lm, directions):
    bridge = perturbed_lm._bridge
    zero = torch.zeros_like(bridge.ln_final.bias)
    bias = bridge.ln_final.bias.data
    linear = perturbed_lm.logit_effects(LAST, directions)
    bridge.ln_final.bias.data = zero
    try:
        lens = logit_lens(perturbed_lm, LAST, directions)
    finally:
        bridge.ln_final.bias.data = bias
    assert torch.equal(lens.argsort(dim=1), linear.argsort(dim=1))
    assert not torch.equal(logit_lens(perturbed_lm, LAST, directions), lens)


def test_length_does_not_matter_and_the_sign_does(perturbed_lm, directions):
    small, large = (logit_lens(perturbed_lm, LAST, s * directions) for s in (10.0, 1000.0))
    assert torch.allclose(small, large, atol=1e-3)
    assert not torch.allclose(small, logit_lens(perturbed_lm, LAST, -10 * directions), atol=0.1)


def test_many_directions_in_parts_equal_one_at_a_time(perturbed_lm):
    rows = torch.randn(520, 16, generator=torch.Generator().manual_seed(7))
    together = logit_lens(perturbed_lm, LAST, rows)
    for i in (0, 511, 512, 519):
        assert torch.allclose(
            together[i], logit_lens(perturbed_lm, LAST, rows[i : i + 1])[0], atol=1e-4
        )


@pytest.mark.parametrize(("stretch", "n_right"), [(1.0, len(WORDS)), (9.0, None)])
def test_the_column_of_a_token_promises_it_where_all_columns_are_equally_long(
    tmp_path, stretch, n_right
):
    """And where they are not, some columns promise a token of a longer one."""
    from saelab.lm.load import load_language_model

    def change(name, value):
        if name == "lm_head.weight":
            centred = value - value.mean(dim=1, keepdim=True)
            lengths = torch.linspace(1, stretch, len(value))[:, None]
            return lengths * torch.nn.functional.normalize(centred, dim=1)
        return torch.ones_like(value) if name.endswith("ln_f.weight") else value

    lm = load_language_model(save_checkpoint(tmp_path, change, tied=False), device="cpu")
    columns = lm._bridge.W_U.T
    tokens = lens_tokens(lm, LAST, columns, 3)
    assert tokens.shape == (len(WORDS), 3)
    right = int((tokens[:, 0] == torch.arange(len(WORDS))).sum())
    assert right == n_right if n_right else 0 < right < len(WORDS)


def test_more_tokens_than_the_vocabulary_are_all_of_it(perturbed_lm, directions):
    tokens = lens_tokens(perturbed_lm, LAST, directions, 99)
    assert tokens.shape == (7, len(WORDS))


def test_a_site_without_a_direct_path_is_refused(perturbed_lm, directions):
    with pytest.raises(UsageError, match=r"hook_q has no logits in .* only through a nonlinearity"):
        logit_lens(perturbed_lm, "blocks.0.attn.hook_q", directions)

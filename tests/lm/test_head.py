"""A model cut before its unembedding says what the whole model says, a few positions at a time."""

from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F
from typing_extensions import override

from saelab.lm import predictions
from saelab.lm.gradients import next_token_loss
from saelab.lm.head import OutputHead
from saelab.lm.predictions import Predictions
from saelab.lm.protocol import ModelOutput

SMALL: Any = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "bias": lambda: transformers.PhiConfig(**SMALL | {"num_key_value_heads": 2}),
    "soft cap": lambda: transformers.Gemma2Config(**SMALL, final_logit_softcapping=2.0),
    "divided": lambda: transformers.GraniteConfig(**SMALL, logits_scaling=7.0),
    "multiplied": lambda: transformers.CohereConfig(**SMALL, logit_scale=0.1),
    "untied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=False),
    "experts": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=2),
    "state space": lambda: transformers.MambaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4
    ),
    "post-norms": lambda: transformers.OPTConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32,
        max_position_embeddings=32, word_embed_proj_dim=8,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """A hundred logits at a time: two positions."""
    monkeypatch.setattr(predictions, "NUMBERS_AT_ONCE", {"cpu": 100})


def model_of(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, value in model.named_parameters():
        torch.nn.init.normal_(value, std=0.3) if "norm" not in name else value.data.add_(0.5)
    return model.eval().requires_grad_(requires_grad=False)


@pytest.fixture
def tokens():
    return torch.randint(1, 50, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("what", CONFIGS)
def test_the_rest_of_the_model_is_the_models_own(what, tokens):
    model = model_of(CONFIGS[what]())
    whole = model(tokens).logits
    out = OutputHead(model).run(lambda: model(tokens).logits)
    assert out.unembed is not None
    assert out.d_vocab == 50
    torch.testing.assert_close(out.logits, whole, atol=1e-5, rtol=1e-5)
    some = out.at(tokens % 2 == 0)
    found = torch.cat([some.logits(part) for part in some.pieces()])
    assert len(list(some.pieces())) > 1
    torch.testing.assert_close(found, whole[tokens % 2 == 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.behind(3).logits(), whole[:, 3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(tokens).logits, whole, rtol=0, atol=0)


class Adds(torch.nn.Module):
    """A model that does more with its logits than the blocks' result tells."""

    def __init__(self, model, more):
        super().__init__()
        self.model, self.config, self.base_model, self.more = model, model.config, model.model, more

    @override
    def forward(self, input_ids):
        out = self.model(input_ids)
        out.logits = out.logits + self.more(input_ids)[..., None] * torch.arange(50.0)
        return out


@pytest.mark.parametrize("more", [lambda ids: ids, lambda ids: torch.arange(ids.shape[1])])
def test_a_model_whose_rest_depends_on_tokens_or_places_is_not_cut(tokens, more):
    model = Adds(model_of(CONFIGS["untied"]()), more)
    out = OutputHead(model).run(lambda: model(tokens).logits)
    assert out.unembed is None
    assert torch.equal(out.logits, model(tokens).logits)
    assert torch.equal(out.behind().logits(), out.logits[:, -1])


def test_a_sum_over_pieces_and_its_gradient_are_those_of_the_whole(tokens):
    model = model_of(CONFIGS["soft cap"]())
    head = OutputHead(model)
    out = head.run(lambda: model(tokens).logits)
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[1, 4:] = False
    leaf = out.hidden.clone().requires_grad_()
    found = next_token_loss(ModelOutput(leaf, {}, head, 50), tokens, real)
    (gradient,) = torch.autograd.grad(3 * found, leaf)
    dense = leaf.detach().clone().requires_grad_()
    logits = head(dense.flatten(0, 1)).unflatten(0, tokens.shape)[:, :-1]
    targets = tokens.masked_fill(~real, -100)[:, 1:]
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(3 * expected, dense)[0])


def test_log_probabilities_of_tokens_are_gathered_from_the_softmax():
    logits = torch.randn(9, 50, generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(9) * 5
    expected = logits.log_softmax(-1)[torch.arange(9), tokens]
    torch.testing.assert_close(Predictions(logits, None, 50).log_probs(tokens), expected)
    assert Predictions(logits[:0], None, 50).log_probs(tokens[:0]).shape == (0,)

"""Small models and SAEs whose numbers a test can know."""

from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging

from saelab.analysis.steering import self_test
from saelab.analysis.steering.edits import latent_edits
from saelab.host.host import Host
from saelab.sae.abs_topk import AbsTopKConfig
from saelab.sae.base import AbstractSAE
from saelab.sae.jumprelu import JumpReLUConfig
from saelab.sae.matching_pursuit import MatchingPursuitConfig
from saelab.sae.topk import TopKConfig

SENTENCE = "the big cat sat on a red mat . and dog ran under tree"
WORDS = ["<bos>", "<unk>", *SENTENCE.split()]
PROMPT = "the big cat sat on"
LAST = "blocks.1.hook_resid_post"
MIDDLE = "blocks.0.hook_resid_post"


def save_checkpoint(directory: Path, change, *, tied: bool = True) -> str:
    """A two-layer GPT-2 over `WORDS`, every parameter passed through `change(name, value)`."""
    logging.disable_progress_bar()
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=tied,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(change(name, value.clone()))
    model.save_pretrained(directory)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", unk_token="<unk>")
    tokenizer.save_pretrained(directory)
    return str(directory)


def perturbed(name: str, value: torch.Tensor) -> torch.Tensor:
    """Nothing stays at its default: biases are not zero, gains not one, weights not tiny."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    noise = torch.randn(value.shape, generator=generator)
    return value * 5 + 0.3 * noise if value.ndim > 1 else value + 0.5 * noise


CONFIGS = {
    "topk": TopKConfig(d_sae=24, k=4),
    "abs-topk": AbsTopKConfig(d_sae=24, k=4),
    "matching-pursuit": MatchingPursuitConfig(d_sae=24, k=4),
    "jumprelu": JumpReLUConfig(d_sae=24, k=4),
}


def random_sae(variant: str = "topk", *, d_in: int = 16) -> AbstractSAE:
    """An untrained SAE whose biases are not zero."""
    generator = torch.Generator().manual_seed(3)
    sae = CONFIGS[variant].build(d_in, generator)
    with torch.no_grad():
        sae.b_dec.copy_(torch.randn(d_in, generator=generator))
        if "b_enc" in dict(sae.named_parameters()):
            sae.get_parameter("b_enc").copy_(0.1 * torch.randn(24, generator=generator))
    return sae.eval().requires_grad_(requires_grad=False)


def steerable(lm, variant: str = "topk", site: str = MIDDLE) -> Host:
    """A random SAE at a site, with made-up maxima."""
    d_in = lm.width(site)
    sae = random_sae(variant, d_in=d_in)
    return replace(Host.at(lm, sae, site), maxima=torch.linspace(1.0, 3.0, sae.d_sae))


def break_edits(monkeypatch, damage=lambda value, edited, mask: value):
    """Let the self-test steer in a way that `damage` decides, whatever is asked."""

    def edits(host, changes, mask):
        asked = latent_edits(host, changes, mask)[host.writes]
        return {host.writes: lambda value: damage(value, asked(value), mask)}

    monkeypatch.setattr(self_test, "latent_edits", edits)

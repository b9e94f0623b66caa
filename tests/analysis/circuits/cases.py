"""Random models without a default left in them, random SAEs in them, and a prompt."""

from pathlib import Path
from typing import Any

import torch
import transformers
from analysis.steering.cases import WORDS, perturbed, random_sae
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.utils import logging

from saelab.analysis.circuits.frozen import Frozen, freeze
from saelab.host.host import Host
from saelab.sae.transcoder import make_transcoder
from saelab.sae.variants import SAE_CONFIG

PROMPT = "the big cat sat on a red"
SITES = {
    "blocks.0.attn.hook_z": "topk",
    "blocks.1.hook_resid_pre": "matching-pursuit",
    "blocks.1.attn.hook_z": "abs-topk",
    "blocks.2.attn.hook_z": "jumprelu",
}
"""Sites with an SAE each, of several variants; from block 1 on, the stream passes through one."""


def save_random(directory: Path, kind: str) -> str:
    """A three-layer model of width 16 with 4 heads, every parameter perturbed."""
    logging.disable_progress_bar()
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size: dict[str, Any] = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 0}
    size["tie_word_embeddings"] = False
    if kind == "gpt2":
        size |= {"n_positions": 32, "n_embd": 16, "n_layer": 3, "n_head": 4}
    else:
        size |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
        size |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        size |= {"max_position_embeddings": 32}
    config = transformers.CONFIG_MAPPING[kind](**size)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(perturbed(name, value.clone()))
    model.save_pretrained(directory)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(directory)
    return str(directory)


def hosts(lm, sites=None, *, transcoder: int | None = None) -> list[Host]:
    """Random SAEs at some sites, and perhaps a random transcoder for one MLP."""
    sites = SITES if sites is None else sites
    found = [Host.at(lm, random_sae(v, d_in=lm.width(s)), s) for s, v in sites.items()]
    if transcoder is not None:
        into, out = (f"blocks.{transcoder}.{part}" for part in ("ln2.hook_out", "hook_mlp_out"))
        sae = random_sae("topk", d_in=lm.info.d_model)
        found.append(Host(lm, sae, into, out, "transcoder"))
    return found


def random_transcoder(lm, layer: int, variant: str = "topk", *, skip: bool = False) -> Host:
    """A random transcoder for an MLP, no parameter zero; its name says which."""
    width, generator = lm.info.d_model, torch.Generator().manual_seed(layer)
    options = {"variant": variant, "d_sae": 24, "k": 4}
    sae = SAE_CONFIG.validate_python(options).build(width, generator)
    make_transcoder(sae, width, skip=skip, generator=generator)
    with torch.no_grad():
        for name in ("b_in", "b_enc", "b_dec", *(["W_skip"] if skip else [])):
            value = sae.get_parameter(name)
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    into, out = (f"blocks.{layer}.{part}" for part in ("ln2.hook_out", "hook_mlp_out"))
    return Host(lm, sae.eval().requires_grad_(requires_grad=False), into, out, f"mlp {layer}")


def prompt_of(lm, text: str = PROMPT) -> torch.Tensor:
    return torch.tensor([0, *lm.tokenizer.encode(text)])


def frozen_of(lm, sites=None, *, transcoder: int | None = None) -> Frozen:
    return freeze(lm, hosts(lm, sites, transcoder=transcoder), prompt_of(lm))


def one_hot(lm, token: int) -> torch.Tensor:
    coefficients = torch.zeros(lm.info.d_vocab, dtype=torch.float64)
    coefficients[token] = 1
    return coefficients

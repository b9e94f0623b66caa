"""The shipped model's architecture: GPT-2's layout at 4 layers of width 128."""

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from saelab.files import atomic_write, atomic_write_json
from saelab.lm.tiny import MODEL_DIR, N_CTX
from saelab.lm.tiny.vocabulary import WORDS
from tools.tiny.tokenizer import save_tokenizer

INIT_STD = 0.02


def new_config() -> GPT2Config:
    """4 layers, 4 heads of 32, MLP of 512, untied embeddings, no dropout."""
    return GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=len(WORDS),
        n_positions=N_CTX,
        n_embd=128,
        n_layer=4,
        n_head=4,
        n_inner=512,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        dtype="bfloat16",
    )


def new_model(seed: int) -> GPT2LMHeadModel:
    """A float32 model with fresh weights: normal(0, 0.02), output projections over sqrt(8)."""
    config = new_config()
    config.dtype = "float32"
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _initialize(name, parameter, generator, config.n_layer)
    return model


def _initialize(name: str, weight: nn.Parameter, generator: torch.Generator, n_layer: int) -> None:
    if name.endswith("bias"):
        weight.zero_()
    elif weight.ndim == 1:
        weight.fill_(1.0)
    else:
        std = INIT_STD / (2 * n_layer) ** 0.5 if name.endswith("c_proj.weight") else INIT_STD
        weight.normal_(0.0, std, generator=generator)


def save_model(model: nn.Module, directory: Path) -> None:
    """Write a complete Hugging Face directory: bf16 weights, configuration, tokenizer."""
    state = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.named_parameters()
    }
    weights = safetensors.torch.save(state, metadata={"format": "pt"})
    atomic_write(directory / "model.safetensors", weights)
    atomic_write_json(directory / "config.json", new_config().to_diff_dict())
    save_tokenizer(directory)


def load_model(
    directory: Path = MODEL_DIR, *, device: str = "cpu", attention: str = "eager"
) -> GPT2LMHeadModel:
    """The saved weights in float32, for inference; `attention` is transformers' implementation."""
    model = GPT2LMHeadModel.from_pretrained(
        directory, dtype=torch.float32, attn_implementation=attention, local_files_only=True
    )
    model.requires_grad_(requires_grad=False).eval()
    nn.Module.to(model, torch.device(device))
    return model


def logits_of(
    model: GPT2LMHeadModel,
) -> Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch pos vocabulary"]]:
    """The model as a function from tokens, on any device, to next-token logits."""

    def logits(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocabulary"]:
        return model(input_ids=tokens.to(model.device), use_cache=False).logits

    return logits

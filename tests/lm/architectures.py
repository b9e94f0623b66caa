"""Small random checkpoints of many architectures, no parameter of which is at its default."""

from pathlib import Path
from typing import Any

import torch

WORDS = [
    "the",
    "big",
    "cat",
    "sat",
    "on",
    "a",
    "red",
    "mat",
    ".",
    "and",
    "dog",
    "ran",
    "under",
    "tree",
]
VOCABULARY = ["<bos>", "<eos>", "<unk>", *WORDS, *(f"w{i}" for i in range(32))]
PROMPT = "the big cat sat on a red"

SIZE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED: dict[str, Any] = {**SIZE, "num_key_value_heads": 2}
HALF_ROPE: dict[str, Any] = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
}
NEOX: dict[str, Any] = {**SIZE, "rope_parameters": HALF_ROPE}
GPT2_SIZE: dict[str, Any] = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}
GEMMA: dict[str, Any] = {**GROUPED, "head_dim": 16}
WINDOWS: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("gpt2", GPT2_SIZE),
    "GPT-J": ("gptj", {**GPT2_SIZE, "rotary_dim": 8}),
    "GPT-Neo": (
        "gpt_neo",
        {
            "hidden_size": 48,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
        },
    ),
    "Pythia (GPT-NeoX, parallel)": ("gpt_neox", {**NEOX, "use_parallel_residual": True}),
    "GPT-NeoX (sequential)": ("gpt_neox", {**NEOX, "use_parallel_residual": False}),
    "OPT": (
        "opt",
        {"hidden_size": 48, "ffn_dim": 96, "word_embed_proj_dim": 48, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "max_position_embeddings": 64},
    ),
    "BLOOM": ("bloom", {"hidden_size": 48, "n_layer": 2, "n_head": 4}),
    "Falcon": ("falcon", {**SIZE, "new_decoder_architecture": False, "multi_query": True}),
    "MPT": ("mpt", {"d_model": 48, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "CodeGen": ("codegen", {**GPT2_SIZE, "rotary_dim": 8}),
    "StarCoder (GPT-BigCode)": ("gpt_bigcode", {**GPT2_SIZE, "multi_query": True}),
    "StarCoder 2": ("starcoder2", GROUPED),
    "Phi": ("phi", {**SIZE, "rope_parameters": HALF_ROPE}),
    "Phi-3": ("phi3", {**GROUPED, "pad_token_id": None}),
    "Llama 2": ("llama", GROUPED),
    "Llama 3 (scaled rope)": ("llama", {**GROUPED, "rope_parameters": LLAMA3_ROPE}),
    "Mistral (sliding window)": ("mistral", {**GROUPED, "sliding_window": 4}),
    "Mixtral": ("mixtral", {**GROUPED, "num_local_experts": 4}),
    "Qwen 2": ("qwen2", GROUPED),
    "Qwen 2 MoE": (
        "qwen2_moe",
        {**GROUPED, **MOE, "shared_expert_intermediate_size": 32},
    ),
    "Qwen 3": ("qwen3", {**GROUPED, "head_dim": 16}),
    "Qwen 3 MoE": ("qwen3_moe", {**GROUPED, **MOE, "head_dim": 16}),
    "Gemma 1": ("gemma", GEMMA),
    "Gemma 2": ("gemma2", {**GEMMA, **WINDOWS, "query_pre_attn_scalar": 8, "sliding_window": 4}),
    "Gemma 3": (
        "gemma3_text",
        {**GEMMA, **WINDOWS, "query_pre_attn_scalar": 8, "sliding_window": 4},
    ),
    "OLMo": ("olmo", {**GROUPED, "clip_qkv": None}),
    "OLMo 2": ("olmo2", GROUPED),
    "OLMoE": ("olmoe", {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "Granite": (
        "granite",
        {**GROUPED, "embedding_multiplier": 3.0, "residual_multiplier": 0.22}
        | {"logits_scaling": 4.0, "attention_multiplier": 0.3},
    ),
    "StableLM": ("stablelm", {**GROUPED, "rope_parameters": HALF_ROPE}),
    "Cohere": ("cohere", {**GROUPED, "logit_scale": 0.0625}),
    "SmolLM3": ("smollm3", {**GROUPED, "no_rope_layers": [1, 0]}),
    "Nemotron": ("nemotron", {**GROUPED, "head_dim": 12}),
    "GLM-4": ("glm4", {**GROUPED, "head_dim": 12}),
    "GPT-OSS": (
        "gpt_oss",
        {**GROUPED, "head_dim": 12, "num_local_experts": 4, "sliding_window": 4},
    ),
    "Mamba": ("mamba", {"hidden_size": 48, "num_hidden_layers": 2, "state_size": 8}),
}
"""By the name in the table of docs/models.md: transformers' `model_type` and what makes it small.
Two layers of width 48, with windows shorter than the prompts, and multipliers that are not one."""


def save_tokenizer(directory: Path) -> None:
    """A tokenizer of whole words, `VOCABULARY`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(VOCABULARY)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(directory)


def random_model(name: str, **changes: Any) -> Any:
    """A transformers model of `ARCHITECTURES[name]`, `changes` made to its configuration."""
    import transformers

    kind, size = ARCHITECTURES[name]
    tokens = {"vocab_size": len(VOCABULARY), "bos_token_id": 0, "eos_token_id": 1}
    options: dict[str, Any] = size | tokens | {"pad_token_id": None} | changes
    config = transformers.CONFIG_MAPPING[kind](**options)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_((0.3 if value.ndim == 1 else 0.15) * torch.randn_like(value))
    return model.eval()


def save_architecture(directory: Path, name: str, **changes: Any) -> str:
    """A checkpoint of `random_model` with a tokenizer; its path."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    random_model(name, **changes).save_pretrained(directory)
    save_tokenizer(directory)
    return str(directory)

"""The tokenizer of the shipped model: one token per word, as a Hugging Face `tokenizer.json`."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from saelab.files import atomic_write, atomic_write_json
from saelab.lm.tiny import N_CTX
from saelab.lm.tiny.vocabulary import BOS, ID, UNKNOWN


def new_tokenizer() -> Tokenizer:
    """Lower-cases, splits at spaces and around punctuation, and looks every word up."""
    tokenizer = Tokenizer(models.WordLevel(ID, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.add_special_tokens([AddedToken(BOS, special=True), AddedToken(UNKNOWN, special=True)])
    return tokenizer


def save_tokenizer(directory: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which `AutoTokenizer` reads offline."""
    atomic_write(directory / "tokenizer.json", json_bytes(new_tokenizer()))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": BOS,
        "pad_token": BOS,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": N_CTX,
    }
    atomic_write_json(directory / "tokenizer_config.json", config)


def json_bytes(tokenizer: Tokenizer) -> bytes:
    """The tokenizer's JSON, one entry per line, with readable UTF-8."""
    content = json.loads(tokenizer.to_str())
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

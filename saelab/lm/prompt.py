"""What a user types as a prompt or as one token, in a model's token ids.

One place for the command line, the API and the browser. Importing it does not import torch.
"""

from typing import TYPE_CHECKING

from jaxtyping import Int

from saelab.config import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.lm.protocol import LanguageModel

LONGEST = 100_000
"""Characters of a prompt; whatever tokenizer reads it, no model here reads more."""
SHOWN = 40
"""Characters of a word that an error message repeats."""


def encode_prompt(lm: "LanguageModel", text: str) -> "Int[Tensor, ' pos']":
    """`prompt_tokens` on the model's device.

    Raises:
        UsageError: there are none, too many, or unknown ones.
    """
    import torch

    return torch.tensor(prompt_tokens(lm, text), device=lm.device)


def prompt_tokens(lm: "LanguageModel", text: str) -> list[int]:
    """The tokens of `text` behind <bos>, where the model has one.

    Raises:
        UsageError: there are none, too many, or unknown ones.
    """
    info = lm.info
    if not text.strip():
        raise UsageError("The prompt is empty; write some text.")
    if len(text) > LONGEST:
        raise UsageError(
            f"The prompt has {len(text)} characters, more than the {LONGEST} that are tokenized; "
            "shorten it."
        )
    ids = lm.tokenizer.encode(text)
    if not ids:
        raise UsageError(f"The prompt has no tokens of {info.name}; write some text.")
    if set(info.special_token_ids) & set(ids):
        raise UsageError(
            f"{info.name} does not know {_unknown(lm, text)}; use words of its vocabulary."
        )
    ids = ids if info.bos_token_id is None else [info.bos_token_id, *ids]
    if len(ids) > info.n_ctx:
        raise UsageError(
            f"The prompt has {len(ids)} tokens, {len(ids) - info.n_ctx} more than the "
            f"{info.n_ctx} that {info.name} reads; shorten it."
        )
    return ids


def token_id(lm: "LanguageModel", text: str) -> int:
    """The id of a text that is one token, with or without a space before it.

    Raises:
        UsageError: it is none, or several, or not in the vocabulary.
    """
    special = set(lm.info.special_token_ids)
    plain = lm.tokenizer.encode(text)
    for ids in (plain, lm.tokenizer.encode(f" {text}")):
        if len(ids) == 1 and ids[0] not in special:
            return ids[0]
    why = "which does not know it" if len(plain) == 1 else f"but {len(plain)}"
    raise UsageError(
        f"“{text[:SHOWN]}” is not one token of {lm.info.name}, {why}; give exactly one token."
    )


def _unknown(lm: "LanguageModel", text: str) -> str:
    """The words that become special tokens, the first few by name."""
    special = set(lm.info.special_token_ids)
    words = list(dict.fromkeys(text.split()))
    unknown = [word for word in words if special & set(lm.tokenizer.encode(word))]
    named = ", ".join(f"“{word[:SHOWN]}”" for word in unknown[:5])
    more = f" and {len(unknown) - 5} more words" if len(unknown) > 5 else ""
    return f"{named}{more}" if unknown else "some of these characters"

"""From a prompt or a token that a user typed to a model's token ids.

The command line, the API and the browser all use this module. It does not import torch.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Int

from saelab.config import UsageError
from saelab.console import note, shown
from saelab.lm.at_hand import file_at_hand

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.lm.protocol import LanguageModel

LONGEST = 100_000
"""Largest number of characters in a prompt; no model here reads more."""
SHOWN = 40
"""Characters of a word that an error message shows."""


def encode_prompt(lm: "LanguageModel", text: str) -> "Int[Tensor, ' pos']":
    """`prompt_tokens` on the model's device.

    Raises:
        UsageError: there are no tokens, too many, or unknown ones.
    """
    import torch

    return torch.tensor(prompt_tokens(lm, text), device=lm.device)


def prompt_tokens(lm: "LanguageModel", text: str) -> list[int]:
    """The tokens of `text` after <bos>, if the model has one.

    The text may name special tokens (`<|im_start|>`). If it begins with <bos>, no second one is
    added, and a note says so.

    Raises:
        UsageError: there are no tokens, too many, or unknown ones.
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
    begun = _begun(lm, ids)
    if begun == len(ids):
        raise UsageError(f"The prompt has no tokens of {info.name}; write some text.")
    _check_known(lm, text, ids)
    if begun:
        note(_begun_note(lm, begun))
    ids = ids if info.bos_token_id is None else [info.bos_token_id, *ids[begun:]]
    if len(ids) > info.n_ctx:
        raise UsageError(
            f"The prompt has {len(ids)} tokens, {len(ids) - info.n_ctx} more than the "
            f"{info.n_ctx} that {info.name} reads; shorten it."
        )
    return ids


def prompt_note(lm: "LanguageModel", text: str) -> str:
    """The note that `prompt_tokens` makes of a text, for pages that show it; may be empty."""
    begun = _begun(lm, lm.tokenizer.encode(text[:LONGEST]))
    return _begun_note(lm, begun) if begun else ""


def chat_prompt(lm: "LanguageModel", text: str) -> str:
    """The prompt that the model's chat template makes of `text`; `prompt_tokens` reads it.

    `text` is the user's message, or a list of messages as JSON: `[{"role": "system", "content": "Be
    brief."}, {"role": "user", "content": "Hello"}]`. The template's <bos> is removed, since
    `prompt_tokens` puts one before every prompt.

    Raises:
        UsageError: the text is empty, the messages are invalid, the model has no chat template, or
            the template refuses the messages.
    """
    if not text.strip():
        raise UsageError("The prompt is empty; write some text.")
    made = lm.tokenizer.chat(messages_of(text))
    bos = lm.info.bos_token_id
    return made if bos is None else made.removeprefix(lm.tokenizer.token(bos))


def has_chat_template(model: str) -> bool:
    """Whether the tokenizer of the model called `model` has a chat template, judged by its files.

    Nothing is loaded or fetched: for a model that is not on this machine the answer is no.
    """
    named = any(file_at_hand(model, name) for name in ("chat_template.jinja", "chat_template.json"))
    config = None if named else file_at_hand(model, "tokenizer_config.json")
    if config is None:
        return named
    try:
        values = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and bool(values.get("chat_template"))


def token_id(lm: "LanguageModel", text: str) -> int:
    """The id of a token by its name, or by a text of one token; a leading space is optional.

    Raises:
        UsageError: it is no token, several tokens, or not in the vocabulary.
    """
    table, unknown = lm.tokenizer.table, lm.tokenizer.unknown_id
    named = table.ids.get(text)
    if named is not None and named < lm.info.d_vocab:
        return named
    plain = lm.tokenizer.encode(text)
    for ids in (plain, lm.tokenizer.encode(f" {text}")):
        if len(ids) == 1 and ids[0] != unknown and ids[0] < lm.info.d_vocab:
            return ids[0]
    why = "which does not know it" if len(plain) == 1 else f"but {len(plain)}"
    raise UsageError(
        f"“{shown(text[:SHOWN])}” is not one token of {lm.info.name}, {why}; give exactly one "
        "token."
    )


def messages_of(text: str) -> Sequence[Mapping[str, str]]:
    """The messages that a text is, or the one of the user that it is the content of."""
    if not text.lstrip().startswith("[{"):
        return [{"role": "user", "content": text}]
    form = 'write them as [{"role": "user", "content": "..."}]'
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The messages of the prompt are not JSON ({error}); {form}.") from error
    for number, message in enumerate(messages, 1):
        fields = message if isinstance(message, dict) else {}
        if not all(isinstance(fields.get(name), str) for name in ("role", "content")):
            raise UsageError(
                f"Message {number} of the prompt has no role and content that are text; {form}."
            )
    return messages


def _begun(lm: "LanguageModel", ids: list[int]) -> int:
    """The number of <bos> that a text begins with."""
    bos = lm.info.bos_token_id
    return next((i for i, token in enumerate(ids) if token != bos), len(ids))


def _begun_note(lm: "LanguageModel", begun: int) -> str:
    bos = lm.tokenizer.token(lm.info.bos_token_id or 0)
    times = "" if begun == 1 else f" {begun} times"
    return (
        f"the prompt begins with {bos}{times}; every prompt gets one, so it is there once, not "
        f"{begun + 1} times."
    )


def _check_known(lm: "LanguageModel", text: str, ids: list[int]) -> None:
    """Refuse words that are missing in the vocabulary, and tokens that the model lacks."""
    unknown, info = lm.tokenizer.unknown_id, lm.info
    # A prompt may name the unknown token like any other; GPT-2's is its <bos>.
    if unknown is not None and ids.count(unknown) > text.count(lm.tokenizer.token(unknown)):
        raise UsageError(
            f"{info.name} does not know {_unknown(lm, text)}; use words of its vocabulary."
        )
    if beyond := [token for token in ids if token >= info.d_vocab]:
        raise UsageError(
            f"The tokenizer of {info.name} has tokens that the model has no embedding of, such as "
            f"“{shown(lm.tokenizer.token(beyond[0]))}” ({beyond[0]} of {info.d_vocab}); leave them "
            "out."
        )


def _unknown(lm: "LanguageModel", text: str) -> str:
    """The words that are missing in the vocabulary; names the first few."""
    token = lm.tokenizer.unknown_id
    itself = "" if token is None else lm.tokenizer.token(token)
    words = [word for word in dict.fromkeys(text.split()) if itself not in word]
    unknown = [word for word in words if token in lm.tokenizer.encode(word)]
    named = ", ".join(f"“{shown(word[:SHOWN])}”" for word in unknown[:5])
    more = f" and {len(unknown) - 5} more words" if len(unknown) > 5 else ""
    return f"{named}{more}" if unknown else "some of these characters"

"""A Hugging Face tokenizer behind saelab's two methods."""

from collections.abc import Mapping, Sequence
from typing import Any

from saelab.config import UsageError

_DATED = (
    "{% macro strftime_now(form) %}{{ form | replace('%Y', '2024') | replace('%m', '07') "
    "| replace('%d', '26') | replace('%B', 'July') | replace('%b', 'Jul') }}{% endmacro %}{{ '' }}"
)
"""Stands before a chat template and takes the place of today's date in it."""


class HuggingFaceTokenizer:
    """Text to token ids and back."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401 - transformers has no common class
        self._tokenizer = tokenizer

    @property
    def backend(self) -> Any | None:  # noqa: ANN401 - its type has no stable place
        """The tokenizers library's own object, which reads many texts at once, where it has one."""
        return getattr(self._tokenizer, "backend_tokenizer", None)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def token(self, token_id: int) -> str:
        """One token as text, spaces included."""
        return self._tokenizer.decode([token_id])

    def chat_text(self, messages: Sequence[Mapping[str, str]], *, answer: bool) -> str:
        """The messages through the chat template, without <bos>; `answer` opens the model's turn.

        Templates that write the date write 26 July 2024: the same messages are the same text
        whenever they are read.

        Raises:
            UsageError: there is no template, or it refuses the messages.
        """
        if self._tokenizer.chat_template is None:
            raise UsageError(
                f"The tokenizer of {self._tokenizer.name_or_path} has no chat template, so it "
                "cannot read messages; give plain text, or the instruction-tuned model."
            )
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=answer,
                chat_template=_DATED + self._tokenizer.get_chat_template(),
            )
        except (TemplateError, ValueError, TypeError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"The chat template refuses these messages: {reason}.") from error
        return text.removeprefix(self._tokenizer.bos_token or "")

"""A Hugging Face tokenizer behind saelab's two methods."""

from typing import Any


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

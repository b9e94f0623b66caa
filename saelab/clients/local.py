"""A local causal language model as a client, in this process."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from saelab.clients.question import Answer, FailedError, Question, bounded

if TYPE_CHECKING:
    from saelab.lm.causal import CausalChat


class LocalClient:
    """The checkpoint in the directory `path`; it is loaded at the first question.

    A question with choices is answered by their chances, without writing a word.

    Raises:
        UsageError: at the first question, as `CausalChat`.
    """

    kind, parallel = "local", 1

    def __init__(self, path: Path, *, device: str = "auto") -> None:
        self.place = str(path)
        self.model = path.resolve().name
        self._device = device
        self._chat: CausalChat | None = None
        self._turn = threading.Lock()

    def answer(self, question: Question) -> Answer:
        """The model's answer; raises as `Client.answer`."""
        from saelab.lm.causal import CausalChat, TooLongError

        with self._turn:
            self._chat = self._chat or CausalChat(self.place, device=self._device)
            try:
                if question.choices:
                    found, n = self._chat.chances(question.messages, question.choices)
                    best = max(range(len(found)), key=found.__getitem__)
                    return Answer(question.choices[best], n, 0, tuple(found))
                text, n, n_written = self._chat.answer(question.messages, question.max_tokens)
            except TooLongError as error:
                raise FailedError(f"too long for {self.model}: {error}", again=False) from None
        if not text.strip():
            raise FailedError("the model wrote nothing", again=False)
        return Answer(bounded(text), n, n_written)

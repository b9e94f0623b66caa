"""Any server with OpenAI's chat interface, by the package `openai`.

The key comes from an environment variable, is sent to this server only, and is written nowhere: it
is cut out of every answer and every message. Answers are untrusted: their bytes and their time are
limited.
"""

import math
import os
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from saelab.clients.files import tokens_used
from saelab.clients.question import Answer, FailedError, Question, bounded
from saelab.config import UsageError
from saelab.console import printable
from saelab.formats.json_file import parse_json

OPENAI = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"
MOST_BYTES, MOST_BYTES_OF_ERROR = 2**22, 2**14
MOST_VALUES = 200_000
LONGEST_REASON = 200
AGAIN = {408, 409, 425, 429}
"""Refusals that the same request may not get later, beside those from 500 on."""
TOP = 20
"""The most likely first tokens whose probabilities are asked for."""
BEFORE_SENDING = {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"}
"""Failures before the server could have counted a token."""


class _Status(Exception):  # noqa: N818 - no error yet: it tells what a server refused
    def __init__(self, status: int, wait: str | None, raw: bytes) -> None:
        super().__init__(f"status {status}")
        self.status, self.wait, self.raw = status, wait, raw


class EndpointClient:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        model: its name there.
        base_url: the address, e.g. `http://localhost:8000/v1`; default: OpenAI's.
        key_name: the environment variable with the key. A server at a `base_url` may need none.
        timeout: seconds that a request may take.
        parallel: requests at once.

    Raises:
        UsageError: `openai` is not installed, there is no key for OpenAI, or the address is none.
    """

    kind = "endpoint"

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        key_name: str = KEY,
        timeout: float = 120.0,
        parallel: int = 8,
    ) -> None:
        self.model, self.parallel = model, parallel
        self.place = _checked(base_url or OPENAI)
        self._key_name, self._timeout = key_name, timeout
        self._key = os.environ.get(key_name, "").strip()
        if not self._key and base_url is None:
            raise UsageError(
                f"There is no key in the environment variable {key_name}; set it, or give the "
                "--base-url of a server that needs none."
            )
        self._unwanted: set[str] = set()
        self._client = self._connected()

    def _connected(self) -> Any:  # noqa: ANN401 - a type of a package that may be missing
        try:
            import openai
        except ImportError:
            raise UsageError(
                "An endpoint needs the package openai: pip install 'saelab[explain]'."
            ) from None
        http = openai.DefaultHttpxClient(
            event_hooks={"response": [self._refuse]}, follow_redirects=False
        )
        return openai.OpenAI(
            api_key=self._key or "none",
            base_url=self.place,
            timeout=self._timeout,
            max_retries=0,
            http_client=http,
        )

    def answer(self, question: Question) -> Answer:
        """The server's answer; raises as `Client.answer`."""
        until = time.monotonic() + self._timeout
        try:
            create = self._client.chat.completions.with_streaming_response.create
            with create(**self._body(question)) as response:
                raw = _read(response.iter_bytes(), MOST_BYTES, until)
        except FailedError:
            raise
        except Exception as error:  # noqa: BLE001 - of the package, or of the connection below it
            raise self._failure(error.__cause__ or error) from None
        return self._read(raw, question)

    def _body(self, question: Question) -> dict[str, Any]:
        longest = "max_completion_tokens" if "max_tokens" in self._unwanted else "max_tokens"
        body = {
            "model": self.model,
            "messages": question.messages,
            longest: question.max_tokens,
            "temperature": 0,
        }
        if question.choices:
            body |= {"logprobs": True, "top_logprobs": TOP}
        return {name: value for name, value in body.items() if name not in self._unwanted}

    def _refuse(self, response: Any) -> None:  # noqa: ANN401 - of httpx or its successor
        """Read a little of a refusal, before the package reads all of it."""
        if response.status_code >= 300:
            until = time.monotonic() + self._timeout
            raw = _read(response.iter_bytes(), MOST_BYTES_OF_ERROR, until, cut=True)
            raise _Status(response.status_code, response.headers.get("retry-after"), raw)

    def _failure(self, error: BaseException) -> Exception:
        """What a failure means: of this request, or of all."""
        if isinstance(error, FailedError):
            return error
        if not isinstance(error, _Status):
            name = type(error).__name__
            late = f"no answer in {self._timeout:g} s ({name})"
            why = late if name.endswith("Timeout") else self._plain(f"{name}: {error}")
            sent = name not in BEFORE_SENDING
            return FailedError(f"{why} at {self._without_key(self.place)}", paid=sent, sent=sent)
        said = self._plain(error.raw.decode("utf-8", errors="replace"))
        told = f"{self.place} answers {error.status}: {said}"
        if error.status in (401, 403):
            given = f"the key in {self._key_name}" if self._key else f"no key ({self._key_name})"
            return UsageError(f"{self.place} refuses {given}: {said}.")
        if error.status == 404 or error.status < 400:
            return UsageError(f"{self.place} has no model {self.model!r}, or none there: {said}.")
        if "insufficient_quota" in said:
            return UsageError(f"{told}.")
        if error.status in (400, 422) and self._adapt(said):
            return FailedError(told)
        again = error.status in AGAIN or error.status >= 500
        return FailedError(told, again=again, wait=_seconds(error.wait))

    def _adapt(self, said: str) -> bool:
        """Leave out an option that the server names in its refusal; True if one was left out."""
        for name in ("max_tokens", "temperature", "top_logprobs", "logprobs"):
            if name in said and name not in self._unwanted:
                self._unwanted |= {name, "top_logprobs"} if "logprobs" in name else {name}
                return True
        return False

    def _read(self, raw: bytes, question: Question) -> Answer:
        try:
            values = parse_json(raw, "the answer", max_values=MOST_VALUES)
        except UsageError as error:
            raise FailedError(self._plain(str(error)), paid=True) from None
        match values:
            case {"choices": [{"message": {"content": str(text)}, **rest}, *_]} if text.strip():
                logs, used = rest.get("logprobs"), tokens_used(values.get("usage"))
            case _:
                raise FailedError("the answer has no text", paid=True)
        return Answer(bounded(self._without_key(text)), *used, chances(logs, question.choices))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _plain(self, text: str) -> str:
        """A server's words in a message: one line, short, without the key."""
        line = " ".join(printable(self._without_key(text)).split())
        return (line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…").rstrip(".")


def chances(logs: object, choices: tuple[str, ...]) -> tuple[float, ...] | None:
    """Each choice's share of the probability that the first token has for all of them."""
    match logs:
        # pyrefly: ignore[not-callable]
        case {"content": [{"top_logprobs": list(top)}, *_]} if choices:
            pass
        case _:
            return None
    found = dict.fromkeys(choices, 0.0)
    for entry in top:
        match entry:
            case {"token": str(token), "logprob": float() | int() as log} if log <= 0:
                word = token.strip().lower()
                for choice in choices:
                    found[choice] += math.exp(log) if word == choice.lower() else 0.0
            case _:
                return None
    total = sum(found.values())
    return tuple(found[choice] / total for choice in choices) if total else None


def _read(parts: Iterator[bytes], most: int, until: float, *, cut: bool = False) -> bytes:
    """All bytes, at most `most`, until a time; with `cut`, what there is so far."""
    raw = b""
    for part in parts:
        raw += part
        late = time.monotonic() > until
        if cut and (len(raw) >= most or late):
            return raw[:most]
        if len(raw) > most:
            raise FailedError(f"the answer has more than {most:,} bytes", paid=True)
        if late:
            raise FailedError("the answer did not end in time", paid=True)
    return raw


def _seconds(text: str | None) -> float | None:
    """A Retry-After in seconds; None if there is none, or a date."""
    try:
        wait = float(text or "")
    except ValueError:
        return None
    return wait if 0 <= wait < math.inf else None


def _checked(address: str) -> str:
    """An address that can be written down.

    Raises:
        UsageError: it is no http address, or holds a secret.
    """
    if set(address) & set("@?#"):
        raise UsageError(
            "--base-url holds more than a host and a path; keys belong in the environment, as "
            "addresses are shown and written down."
        )
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"--base-url {printable(address)[:80]!r} is no http or https address.")
    return address.rstrip("/")

"""A server with OpenAI's chat interface on loopback, whose behaviour a test writes."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import override

KEY = "sk-secret-0123456789"


@dataclass
class Script:
    """What the server answers, and what it was asked.

    Attributes:
        reply: gets the number of the request and its body; returns a status, a body (bytes, or
            values for JSON) and headers, or raises to hang up.
        asked: how often each user message was sent.
        answered: how often each was answered with 200, to the end.
        keys: what stood in the Authorization header.
    """

    reply: Callable[[int, dict[str, Any]], tuple[int, Any, dict[str, str]]]
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    turn: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""


def completion(text: Any, **more: Any) -> dict[str, Any]:
    """A usual answer."""
    return {
        "model": "scripted",
        "choices": [{"message": {"role": "assistant", "content": text}, **more}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }


class _Handler(BaseHTTPRequestHandler):
    script: Script

    def do_POST(self):
        script = self.script
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        with script.turn:
            number = script.asked.total()
            script.asked[text] += 1
            script.keys.add(self.headers["Authorization"])
        try:
            status, values, headers = script.reply(number, body)
            self._send(status, values, headers)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
            return
        if status == 200:
            with script.turn:
                script.answered[text] += 1

    def _send(self, status, values: Any, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if callable(values):
            self.send_header("Connection", "close")
            self.end_headers()
            for part in values():
                self.wfile.write(part)
            self.close_connection = True
            return
        raw = values if isinstance(values, bytes) else json.dumps(values).encode()
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    @override
    def log_message(self, format, *args):
        pass


@contextmanager
def serving(script: Script) -> Iterator[Script]:
    """Serve until the end of the context; `script.url` is the base address."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"script": script}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def drip(part: bytes, seconds: float, n: int) -> Callable[[], Iterator[bytes]]:
    """A body that comes in `n` parts, each after `seconds`."""

    def parts() -> Iterator[bytes]:
        for _ in range(n):
            time.sleep(seconds)
            yield part

    return parts

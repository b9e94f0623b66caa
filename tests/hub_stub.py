"""A hub on the loopback address: files by their digests, and whatever can go wrong with it."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

from typing_extensions import override

COMMIT = "0123456789" * 4


@dataclass
class Hub:
    """What the stub serves; changed while it runs.

    Attributes:
        files: contents by repository and path, `owner/name/path`.
        cuts: after how many bytes of a body the connection ends, one after another; the last stays.
        lies: paths whose bytes differ from their digests.
        status: answered to everything, while not None.
        asked: methods and paths, in order.
        ranges: the ranges that were asked for.
    """

    files: dict[str, bytes]
    endpoint: str = ""
    cuts: list[int] = field(default_factory=list)
    lies: set[str] = field(default_factory=set)
    status: int | None = None
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)

    def repositories(self) -> set[str]:
        return {"/".join(name.split("/")[:2]) for name in self.files}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The stub, on a port of its own, while the context lasts."""
    server = Server(("127.0.0.1", 0), Handler)
    server.hub = hub
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Server(ThreadingHTTPServer):
    hub: Hub


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    @override
    def log_message(self, format: str, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(self.path.split("?")[0])
        self.server.hub.asked.append(f"{self.command} {path}")
        if self.server.hub.status is not None:
            self._send(self.server.hub.status, b"", {"Retry-After": "30"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+/?(.*)", path):
            self._tree(*found.groups())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._file(f"{found[1]}/{found[2]}", found[1], body=body)
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _tree(self, repo: str, folder: str) -> None:
        prefix = f"{repo}/{folder}".rstrip("/") + "/"
        inside = [
            n for n in self.server.hub.files if n.startswith(prefix) and "/" not in n[len(prefix) :]
        ]
        entries = [
            {
                "type": "file",
                "path": name[len(repo) + 1 :],
                "size": len(self.server.hub.files[name]),
                "oid": "0" * 40,
            }
            for name in inside
        ]
        if inside:
            self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _file(self, name: str, repo: str, *, body: bool) -> None:
        if (data := self.server.hub.files.get(name)) is None:
            known = repo in self.server.hub.repositories()
            code = "EntryNotFound" if known else "RepoNotFound"
            self._send(404, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
            return
        sent = data[::-1] if name in self.server.hub.lies else data
        facts = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        start, status = 0, 200
        if wanted := self.headers.get("Range"):
            self.server.hub.ranges.append(wanted)
            start, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
            facts["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(status, sent[start:], facts, body=body)

    def _send(
        self, status: int, data: bytes, headers: dict[str, str], *, body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and self.command == "GET":
            self._body(data)

    def _body(self, data: bytes) -> None:
        cuts = self.server.hub.cuts
        if not cuts or "resolve" not in self.path:
            self.wfile.write(data)
            return
        cut = cuts.pop(0) if len(cuts) > 1 else cuts[0]
        self.wfile.write(data[:cut])
        self.close_connection = True

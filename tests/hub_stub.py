"""A hub on the loopback address: files by their digests, and whatever can go wrong with it."""

import base64
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
        writers: tokens that may write.
        created: repositories that were made, and whether they are private.
        drops: paths at which the connection ends without an answer.
    """

    files: dict[str, bytes]
    endpoint: str = ""
    cuts: list[int] = field(default_factory=list)
    lies: set[str] = field(default_factory=set)
    status: int | None = None
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    writers: set[str] = field(default_factory=set)
    created: dict[str, bool] = field(default_factory=dict)
    drops: set[str] = field(default_factory=set)

    def repositories(self) -> set[str]:
        return {"/".join(name.split("/")[:2]) for name in self.files} | self.created.keys()


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
    server: Server  # pyrefly: ignore[bad-override-mutable-attribute]

    @override
    def log_message(self, format: str, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        path = unquote(self.path.split("?")[0])
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub = self.server.hub
        hub.asked.append(f"POST {path}")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if any(dropped in path for dropped in hub.drops):
            self.close_connection = True
        elif hub.status is not None:
            self._send(hub.status, b"{}", {"Retry-After": "30"})
        elif path != "/api/validate-yaml" and token not in hub.writers:
            self._send(403, b"{}", {})
        else:
            self._told(self._posted(path, data))

    def _posted(self, path: str, data: bytes) -> object:
        hub = self.server.hub
        if path == "/api/repos/create":
            asked = json.loads(data)
            repo = f"{asked['organization']}/{asked['name']}"
            hub.created[repo] = asked.get("private", asked.get("visibility") == "private")
            return {"url": f"{hub.endpoint}/{repo}", "name": repo}
        if path.endswith("/preupload/main"):
            files = [each["path"] for each in json.loads(data)["files"]]
            kept = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return {"files": [{"path": name, **kept} for name in files]}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    hub.files[f"{found[1]}/{line['value']['path']}"] = content
            return {"commitUrl": f"{hub.endpoint}/{found[1]}/commit/{COMMIT}", "commitOid": COMMIT}
        return {}

    def _told(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, *, body: bool) -> None:
        path = unquote(self.path.split("?")[0])
        self.server.hub.asked.append(f"{self.command} {path}")
        if self.server.hub.status is not None:
            self._send(self.server.hub.status, b"", {"Retry-After": "30"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+/?(.*)", path):
            self._tree(*found.groups())
        elif (found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path)) and found[
            1
        ] in self.server.hub.repositories():
            inside = [n for n in self.server.hub.files if n.startswith(f"{found[1]}/")]
            names = [{"rfilename": name[len(found[1]) + 1 :]} for name in inside]
            self._told({"id": found[1], "siblings": names})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._file(f"{found[1]}/{found[2]}", found[1], body=body)
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _tree(self, repo: str, folder: str) -> None:
        prefix = f"{repo}/{folder}".rstrip("/") + "/"
        deep = "recursive=true" in self.path.lower()
        below = [n for n in self.server.hub.files if n.startswith(prefix)]
        inside = [n for n in below if deep or "/" not in n[len(prefix) :]]
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
        if body and self.command != "HEAD":
            self._body(data)

    def _body(self, data: bytes) -> None:
        cuts = self.server.hub.cuts
        if not cuts or "resolve" not in self.path:
            self.wfile.write(data)
            return
        cut = cuts.pop(0) if len(cuts) > 1 else cuts[0]
        self.wfile.write(data[:cut])
        self.close_connection = True

"""Who may use the server, and what its pages may do; checked first for every request.

A page of another site can reach a server on this machine in two ways. It can point its own name at
127.0.0.1 (DNS rebinding): its requests then have that name in `Host`. Or it can open a websocket,
which browsers allow every page: then `Origin` has the page's site. A page can change neither.
"""

import base64
import hashlib
import ipaddress
import re
from collections.abc import Collection
from functools import cache
from pathlib import Path

import streamlit
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feature_browser.shell.launch import allowed_names

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""The names that the server always answers to."""
_AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")
_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_KIND = {"http": "http.response", "websocket": "websocket.http.response"}


class Guard:
    """ASGI middleware that refuses other hosts and origins, and sends SECURITY headers.

    Requests without an `Origin` pass: browsers send it with every websocket, so such a request is
    from a program, which could claim any origin.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, a websocket's opening, or the server's own start and end."""
        kind = _KIND.get(scope["type"])
        if kind is None:
            await self.app(scope, receive, send)
            return
        begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(_guarded(message) if message["type"] == f"{kind}.start" else message)

        refused = refusal(scope["headers"], allowed_names())
        if refused:
            await _answer(kind, send_guarded, *refused)
            return
        try:
            await self.app(scope, receive, send_guarded)
        except Exception:
            # The server's own error answers would lack the headers.
            if not begun and kind == "http.response":
                await _answer(kind, send_guarded, 500, "The server failed; its log says how.")
            raise


def refusal(
    headers: Collection[tuple[bytes, bytes]], given: Collection[str]
) -> tuple[int, str] | None:
    """Why a request with these headers is refused: status and sentence; None if it is not.

    `given` are the names, beside LOOPBACK, that the server answers to. A proxy may send its own
    name or the server's in `Host`, so a page of a given name always counts as the same origin.
    """
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    names = [host_name(host) for host in hosts]
    if len(hosts) != 1 or names[0] not in {*LOOPBACK, *given}:
        named = len(hosts) == 1 and names[0]
        remedy = f"; if it should, start it with --allow-host {named}." if named else "."
        return 421, f"This server does not answer for {named or 'such a host'}{remedy}"
    for name, value in headers:
        if name == b"origin":
            scheme, _, authority = value.decode("latin-1").lower().partition("://")
            own = authority == hosts[0].lower() or host_name(authority) in given
            if scheme not in ("http", "https") or not own:
                return 403, "A page from elsewhere may not use this server."
    return None


def host_name(authority: str) -> str | None:
    """The name in "name:port", in lower case, an IPv6 address in brackets; None if invalid."""
    found = _AUTHORITY.fullmatch(authority.lower())
    if found is None:
        return None
    name = found["name"].removesuffix(".")
    if not name.startswith("["):
        return name
    try:
        return f"[{ipaddress.IPv6Address(name[1:-1]).compressed}]"
    except ValueError:
        return None


@cache
def security_headers() -> dict[bytes, bytes]:
    """The security headers of every answer."""
    return {
        b"content-security-policy": content_policy().encode(),
        b"x-content-type-options": b"nosniff",
        b"x-frame-options": b"DENY",
        # Addresses contain prompts and the names of runs.
        b"referrer-policy": b"same-origin",
        b"cross-origin-opener-policy": b"same-origin",
        b"cross-origin-resource-policy": b"same-origin",
    }


def content_policy() -> str:
    """The content security policy: nothing from other sites, and no inline scripts.

    Streamlit's page has one inline script, which is allowed by its digest; the canvas's script is a
    blob. Styles are made while the page runs.
    """
    page = (Path(streamlit.__file__).parent / "static" / "index.html").read_text()
    digests = [hashlib.sha256(script.encode()).digest() for script in _INLINE.findall(page)]
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self' blob: {scripts}",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "manifest-src 'self'",
            "worker-src 'self' blob:",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _guarded(message: Message) -> Message:
    ours = security_headers()
    others = [(name, value) for name, value in message.get("headers", []) if name not in ours]
    return {**message, "headers": [*others, *ours.items()]}


async def _answer(kind: str, send: Send, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": f"{sentence}\n".encode()})

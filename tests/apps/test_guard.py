"""Who may use the server: requests of other hosts and origins are turned away, by one sentence."""

import asyncio
import http.client
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

import pytest
from apps.serving import served
from feature_browser.shell import guard
from feature_browser.shell.guard import Guard, content_policy, host_name, refusal, security_headers
from starlette.responses import PlainTextResponse
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

if TYPE_CHECKING:
    from playwright.sync_api import Page

GIVEN = ["hub.example.org", "10.0.0.7"]


def headers(**values: str) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in values.items()]


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8501", "LOCALHOST:9", "localhost.:1", "127.0.0.1:8501", "[::1]:8501",
     "[0:0:0:0:0:0:0:1]", "hub.example.org", "hub.example.org:443", "10.0.0.7:80"],
)  # fmt: skip
def test_own_names_are_answered_for_at_any_port(host):
    assert refusal(headers(host=host), GIVEN) is None
    assert refusal(headers(host=host, origin=f"http://{host}"), GIVEN) is None
    assert refusal(headers(host=host, origin=f"https://{host}"), GIVEN) is None


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8501", "localhost.evil.example", "127.0.0.1.evil.example",
     "localhost@evil.example", "evil.example@localhost", "localhost:8501:1", "localhost/", "",
     "example.org", "127.0.0.2", "0.0.0.0", "[::]", "[::2]", "2130706433", "::1", "[::1", "*",
     "localhost, evil.example", "hub.example.org.evil", "\u24c1ocalhost"],
)  # fmt: skip
def test_other_names_are_not(host):
    status, sentence = refusal(headers(host=host), GIVEN) or (0, "")
    assert status == 421
    assert sentence.startswith("This server does not answer for ")
    assert "\n" not in sentence


def test_no_host_and_two_hosts_are_turned_away():
    assert refusal([], GIVEN) is not None
    twice = headers(host="localhost") + headers(host="evil.example")
    assert refusal(twice, GIVEN) is not None
    assert refusal(headers(host="localhost") * 2, GIVEN) is not None


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://localhost:3000", "http://localhost", "http://127.0.0.1:8501",
     "null", "", "file://", "file://localhost:8501", "http://localhost:8501.evil.example",
     "http://localhost:8501@evil.example", "http://evil.example/localhost:8501", "localhost:8501"],
)  # fmt: skip
def test_pages_of_other_origins_are_turned_away(origin):
    status, _ = refusal(headers(host="localhost:8501", origin=origin), GIVEN) or (0, "")
    assert status == 403


def test_behind_a_proxy_that_says_the_servers_own_name_pages_of_a_given_name_are_its_own():
    at_proxy = headers(host="127.0.0.1:8501", origin="https://hub.example.org")
    assert refusal(at_proxy, GIVEN) is None
    assert refusal(at_proxy, ["other.example.org"]) is not None


def test_addresses_are_told_apart_from_what_looks_like_them():
    assert host_name("[0:0::1]:5") == "[::1]"
    assert host_name("[::g]") is host_name("[1:2]") is host_name("a b") is None


def run(coroutine):
    """In a thread of its own: a browser test before this one has left a loop in the main thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def test_a_failure_of_the_server_has_the_headers_too(monkeypatch):
    monkeypatch.setattr(guard, "allowed_names", list)
    sent = []

    async def failing(scope, receive, send):
        raise RuntimeError(scope["path"])

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/", "headers": headers(host="localhost")}
    with pytest.raises(RuntimeError):
        run(Guard(failing)(scope, None, send))  # pyrefly: ignore[bad-argument-type]
    assert sent[0]["status"] == 500
    assert security_headers().items() <= dict(sent[0]["headers"]).items()


def test_headers_of_the_answer_itself_are_replaced_not_doubled(monkeypatch):
    monkeypatch.setattr(guard, "allowed_names", list)
    sent = []

    async def send(message):
        sent.append(message)

    answer = PlainTextResponse("", headers={"X-Frame-Options": "SAMEORIGIN"})
    scope = {"type": "http", "headers": headers(host="localhost")}
    run(Guard(answer)(scope, None, send))  # pyrefly: ignore[bad-argument-type]
    frame = [value for name, value in sent[0]["headers"] if name == b"x-frame-options"]
    assert frame == [b"DENY"]


def test_scripts_come_from_the_server_alone():
    directives = dict(part.split(" ", 1) for part in content_policy().split("; "))
    assert directives["frame-ancestors"] == directives["default-src"] == "'none'"
    assert "unsafe" not in directives["script-src"]
    assert not any(word in content_policy() for word in ("*", "http:", "https:"))


@pytest.fixture(scope="module")
def named_server(runs: Path):
    with served(runs, ["hub.example.org"]) as server:
        yield urlsplit(server.url)


PATHS = ("/", "/latent?run=signed&latent=5", "/latent?run=none", "/_stcore/health", "/none",
         "/favicon.png", "/_stcore/host-config", "/media/none", "/a/../../b", "//evil")  # fmt: skip


@contextmanager
def asked(url: SplitResult, method: str, path: str, **values: str):
    """The server's answer to a request with these headers."""
    with closing(http.client.HTTPConnection(url.netloc, timeout=30)) as connection:
        connection.putrequest(method, path, skip_host="host" in values)
        for name, value in values.items():
            connection.putheader(name, value)
        connection.endheaders()
        yield connection.getresponse()


@pytest.mark.slow
def test_every_answer_of_the_server_has_the_headers(named_server):
    for path in PATHS:
        for method in ("GET", "HEAD", "POST", "OPTIONS", "PUT"):
            with asked(named_server, method, path) as answer:
                for name, value in security_headers().items():
                    assert answer.getheader(name.decode()) == value.decode(), (method, path)


@pytest.mark.slow
def test_the_server_answers_for_its_own_names_alone(named_server):
    for path in PATHS:
        with asked(named_server, "GET", path, host="evil.example") as answer:
            assert answer.status == 421
            assert answer.read().decode().count("\n") == 1
            assert answer.getheader("X-Frame-Options") == "DENY"
        with asked(named_server, "GET", path, origin="http://evil.example") as answer:
            assert answer.status == 403
    for host in ("localhost", "hub.example.org"):
        with asked(named_server, "GET", "/latent?run=signed&latent=5", host=host) as answer:
            assert answer.status == 200
            assert 'class="page latent"' in answer.read().decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:{port}", "http://localhost:{port}", None),
        ("hub.example.org", "https://hub.example.org", None),
        ("localhost:{port}", None, None),
        ("localhost:{port}", "http://evil.example", 403),
        ("localhost:{port}", "http://localhost:3000", 403),
        ("evil.example:{port}", "http://evil.example:{port}", 421),
        ("evil.example:{port}", None, 421),
    ],
)
def test_websockets_open_from_the_servers_own_pages_alone(named_server, host, origin, status):
    # The address connected to is what the name is resolved to.
    sock = socket.create_connection((named_server.hostname, named_server.port))
    options = {"origin": origin and origin.format(port=named_server.port), "sock": sock,
               "proxy": None, "subprotocols": ["streamlit"]}  # fmt: skip
    uri = f"ws://{host.format(port=named_server.port)}/_stcore/stream"
    if status is None:
        with connect(uri, **options):  # pyrefly: ignore[no-matching-overload]
            return
    with pytest.raises(InvalidStatus) as refused:
        connect(uri, **options)  # pyrefly: ignore[no-matching-overload]
    answer = refused.value.response
    assert answer.status_code == status
    assert answer.body is not None
    assert answer.body.count(b"\n") == 1
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


ATTEMPTS = """
async (url) => {
    const socket = new Promise((done) => {
        const opened = new WebSocket(url.replace("http", "ws") + "/_stcore/stream", ["streamlit"])
        opened.onopen = () => done("opened")
        opened.onerror = () => done("refused")
    })
    const text = fetch(url + "/latent?run=signed&latent=5").then(() => "read", () => "refused")
    const frame = document.createElement("iframe")
    document.body.append(frame)
    const framed = new Promise((done) => (frame.onload = done))
    frame.src = url
    await framed
    return [await socket, await text]
}
"""


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("home", ["http://elsewhere.localhost", "http://127.0.0.1"])
def test_a_page_from_elsewhere_reads_and_frames_nothing(page: "Page", server: str, home: str):
    page.route(f"{home}/", lambda route: route.fulfill(body="<p>", content_type="text/html"))
    page.goto(f"{home}/")
    assert page.evaluate(ATTEMPTS, server) == ["refused"] * 2
    assert page.frames[1].url == "chrome-error://chromewebdata/"


@pytest.mark.browser
@pytest.mark.slow
def test_a_name_made_to_lead_here_is_turned_away(page: "Page", server: str):
    # Chromium leads every name below localhost to this machine, as a rebinding page's own would be.
    answer = page.goto(server.replace("127.0.0.1", "elsewhere.localhost"))
    assert answer is not None
    assert answer.status == 421
    assert "does not answer for elsewhere.localhost" in page.content()

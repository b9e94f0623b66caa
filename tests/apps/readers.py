"""Readers without a browser: sessions on the app's own web socket."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import urlopen

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import ClientConnection, connect

BETWEEN_S = 2.0
"""A reader looks this long at a page."""


@contextmanager
def session(url: str) -> Iterator[ClientConnection]:
    """A session of the server at `url`."""
    address = url.replace("http", "ws") + "/_stcore/stream"
    # pyrefly: ignore[no-matching-overload]
    with connect(address, subprotocols=["streamlit"], max_size=None) as socket:
        yield socket


def look(socket: ClientConnection, query: str) -> None:
    """Ask for a page and wait for all of it."""
    asked = BackMsg()
    asked.rerun_script.query_string = query
    socket.send(asked.SerializeToString())
    told = ForwardMsg()
    while told.WhichOneof("type") != "script_finished":
        told.ParseFromString(socket.recv(timeout=60, decode=False))
        if told.WhichOneof("type") == "delta":
            assert told.delta.new_element.WhichOneof("type") != "exception", query
    assert told.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY


@contextmanager
def reading(url: str, n: int, queries: list[str], latents: str) -> Iterator[None]:
    """While this lasts, `n` sessions turn pages of latents, and now and then look at a `query`.

    `latents` is the query of a latent's page up to its number.
    """
    stop = threading.Event()

    def read(reader: int) -> None:
        with session(url) as socket:
            turn = 7 * reader
            time.sleep(BETWEEN_S * reader / n)
            while not stop.wait(BETWEEN_S):
                turn += 1
                if turn % 5 == 0:
                    look(socket, queries[(turn // 5) % len(queries)])
                    continue
                with urlopen(f"{url}/latent?{latents}{turn}") as answer:
                    answer.read()
                look(socket, f"{latents}{turn}")

    threads = [threading.Thread(target=read, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()

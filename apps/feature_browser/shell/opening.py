"""Shows the app in the browser of this machine, once it answers."""

import os
import socket
import threading
import time
import webbrowser
from collections.abc import Callable
from urllib.parse import urlsplit

from saelab.cli.browse import OPEN

PATIENCE_S = 60.0


def open_if_asked() -> None:
    """Have a thread open the address in the environment variable OPEN; once per process."""
    if url := os.environ.pop(OPEN, ""):
        threading.Thread(target=open_when_it_answers, args=(url,), daemon=True).start()


def open_when_it_answers(url: str, show: Callable[[str], object] = webbrowser.open) -> None:
    """Show `url` in a browser as soon as its server takes connections; gives up after a minute."""
    parts = urlsplit(url)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection((parts.hostname or "", parts.port or 80), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            show(url)
            return

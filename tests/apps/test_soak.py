"""Ten readers at once, each on the app's own web socket, as fast as they are answered."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import psutil
import pytest
from apps.readers import look, session
from apps.serving import Server, served
from feature_browser.pages import pages

pytestmark = pytest.mark.exhaustive

SESSIONS, ROUNDS, STEPS = 10, 6, 3
# Rounds that fill the caches do not count; after them, a leak of a page's 100 kB at each of the
# last third's 60 passes would be 6 MB.
MOST_MB = 4.0


def test_ten_sessions_leave_the_servers_memory_flat(runs: Path):
    with served(runs) as server:
        process, used = psutil.Process(server.pid), []
        with ThreadPoolExecutor(SESSIONS) as readers:
            for turn in range(ROUNDS):
                visits = [readers.submit(visit, server, turn, i) for i in range(SESSIONS)]
                # Every session saw every page to its end.
                assert [done.result() for done in visits] == [STEPS] * SESSIONS
                used.append(process.memory_info().rss / 1e6)
    third = ROUNDS // 3
    assert np.median(used[-third:]) - np.median(used[-2 * third : -third]) < MOST_MB, used


def visit(server: Server, turn: int, reader: int) -> int:
    """A session that looks at some pages and leaves; how many it saw."""
    views = [view for view in pages() if view != "runs"]
    with session(server.url) as socket:
        for step in range(STEPS):
            latent = (7 * turn + 3 * reader + step) % 31
            view = views[(turn + reader + step) % len(views)]
            look(socket, f"run=signed&view={view}&latent={latent}")
            with urlopen(f"{server.url}/latent?run=signed&latent={latent}") as answer:
                assert answer.status == 200
    return STEPS

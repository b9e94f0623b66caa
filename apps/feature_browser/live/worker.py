"""The process that computes graphs: `python -m feature_browser.live.worker`.

A request is a line of JSON on standard input: `runs` (paths of runs and sets), `prompt`, `chat`,
and `options` of a circuit; or a change of a graph's latents in the live model (see `effects`).
Lines of JSON on standard output answer it: any number of `report`s, then the `path` of the graph's
file, the `result` of the change, or a `problem` in one sentence.

It is a process of its own because its work keeps an interpreter busy for seconds, in which threads
of the same process could draw no page. It ends when the server does, or after a rest.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from saelab.config import UsageError
from saelab.console import WorkStep, heard_by

REST_S = 1800.0
"""Seconds without a request after which the process ends, and frees the model's memory."""
NICE = 5
"""Pages are drawn before graphs are computed."""


def main() -> None:
    """Answer requests until none comes."""
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()

    def say(**answer: object) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    def hear(report: WorkStep) -> None:
        say(report=asdict(report))

    with heard_by(hear):
        hear(WorkStep("Start the process"))
        answered = _answering()
        os.nice(NICE)
        while True:
            try:
                request = requests.get(timeout=REST_S)
            except Empty:
                return
            try:
                say(**answered(request))
            except UsageError as error:
                say(problem=str(error))
            except (OSError, RuntimeError, MemoryError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                say(problem=f"This could not be computed: {reason[:300]}.")


def _read(requests: "SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    # The server has ended. Files are whole or absent at any moment.
    os.kill(os.getpid(), signal.SIGTERM)


def _answering() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that computes a request's graph or change; it keeps what it loaded."""
    from feature_browser.live import effects
    from saelab.analysis.circuits.explain import CircuitOptions
    from saelab.analysis.circuits.session import Session

    session = Session()

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if "graph" in request:
            return {"result": effects.answer(session, request)}
        paths = [Path(path) for path in request["runs"]]
        options = CircuitOptions(**request["options"])
        _, path = session.explain(paths, request["prompt"], options, chat=request["chat"])
        return {"path": str(path)}

    return answer


if __name__ == "__main__":
    main()

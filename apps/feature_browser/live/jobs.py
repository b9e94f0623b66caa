"""Graphs and changes that are asked for: a queue that all sessions see, and its process."""

import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from saelab.config import UsageError
from saelab.console import WorkStep

MOST_WAITING = 50
KEPT = 200
"""Jobs that are remembered after their end."""
COMMAND = (sys.executable, "-m", "feature_browser.live.worker")
State = Literal["waiting", "running", "done", "failed", "cancelled"]


@dataclass
class GraphJob:
    """A graph, or the effect of a change in the live model, that was asked for.

    Attributes:
        request: as `worker` reads it.
        title: what it explains, for the list of jobs.
        steps: what it has begun, and when (`time.monotonic`).
        report: the last one.
        path: the graph's file, once it is done.
        result: the effect, once it is known.
        problem: why it failed, in one sentence.
    """

    name: str
    request: dict[str, Any]
    title: str
    state: State = "waiting"
    steps: list[tuple[str, float]] = field(default_factory=list)
    report: WorkStep = field(default_factory=lambda: WorkStep("Begin"))
    path: str = ""
    result: dict[str, Any] | None = None
    problem: str = ""

    @property
    def open(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")


class JobQueue:
    """Jobs in the order in which they came; the process is started for the first."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._jobs: dict[str, GraphJob] = {}
        self._lock = threading.RLock()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def submit(self, request: dict[str, Any], title: str) -> GraphJob:
        """The job of this request: one that waits or runs already, or a new one.

        Raises:
            UsageError: too many wait.
        """
        with self._lock:
            for job in self.open_jobs():
                if job.request == request:
                    return job
            if len(self.open_jobs()) >= MOST_WAITING:
                raise UsageError(f"{MOST_WAITING} questions are waiting already; try again later.")
            job = GraphJob(secrets.token_hex(6), request, title)
            self._jobs[job.name] = job
            ended = [name for name, old in self._jobs.items() if not old.open]
            for name in ended[: max(0, len(self._jobs) - KEPT)]:
                del self._jobs[name]
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
        return job

    def find(self, name: str) -> GraphJob | None:
        """The job of this name, also for some time after its end."""
        return self._jobs.get(name)

    def open_jobs(self) -> list[GraphJob]:
        """The job that runs, and those that wait, in order."""
        with self._lock:
            return [job for job in self._jobs.values() if job.open]

    def cancel(self, name: str) -> None:
        """End a job that waits or runs; the process of one that runs is ended with it."""
        with self._lock:
            job = self._jobs.get(name)
            if job is None or not job.open:
                return
            running, job.state = job.state == "running", "cancelled"
            if running and self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """End all jobs and the process."""
        for job in self.open_jobs():
            self.cancel(job.name)
        if (thread := self._thread) is not None:
            thread.join()
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            _end(process)

    def _work(self) -> None:
        while True:
            with self._lock:
                job = next((job for job in self._jobs.values() if job.state == "waiting"), None)
                if job is None:
                    self._thread = None
                    return
                job.state = "running"
                if self._process is None or self._process.poll() is not None:
                    self._process = self._started()
                process = self._process
            self._compute(job, process)

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is not None:
            _end(self._process)
        pipe = subprocess.PIPE
        return subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)

    def _compute(self, job: GraphJob, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{json.dumps(job.request)}\n")
            process.stdin.flush()
        except OSError:
            pass  # It has ended, and so has its output.
        for line in process.stdout:
            answer = json.loads(line)
            if "report" in answer:
                _take(job, WorkStep(**answer["report"]))
                continue
            with self._lock:
                job.path, job.problem = answer.get("path", ""), answer.get("problem", "")
                job.result = answer.get("result")
                if job.open:
                    job.state = "failed" if job.problem else "done"
                    return
            break  # Cancelled as it was done: the process is being killed.
        code = process.wait()
        with self._lock:
            if job.open:
                job.state = "failed"
                memory = "; there may be too little memory for it" if code == -9 else ""
                job.problem = f"The process that computed it ended ({code}){memory}."


def _take(job: GraphJob, report: WorkStep) -> None:
    if not job.steps or job.steps[-1][0] != report.title:
        job.steps.append((report.title, time.monotonic()))
    job.report = report


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


@cache
def job_queue() -> JobQueue:
    """The queue of this server."""
    return JobQueue()

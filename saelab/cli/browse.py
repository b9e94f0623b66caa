"""`saelab browse`: open the feature browser."""

import errno
import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, UsageError

HOST = "127.0.0.1"


class BrowseArguments(Config):
    """Open the feature browser on a directory of runs.

    It needs no network, and is seen on this machine only. Ctrl-C ends it.

        saelab browse runs
    """

    runs: Annotated[Path, Positional("RUNS")] = Path("runs")
    """Directory of runs, searched at every depth."""
    port: int = Field(default=8501, ge=1, le=65535)
    """Port on 127.0.0.1."""


def main(arguments: list[str]) -> int:
    """Parse, check, and become the app."""
    args = parse(BrowseArguments, "browse", arguments)
    if not args.runs.is_dir():
        raise UsageError(f"{args.runs} is not a directory; `saelab demo` makes runs/demo.")
    _check_port(args.port)
    if importlib.util.find_spec("feature_browser") is None:
        raise UsageError("The app is not installed beside saelab; install the whole project.")
    print(f"Open http://{HOST}:{args.port}", flush=True)
    launch = ["-m", "feature_browser.launch", str(args.runs), str(args.port)]
    os.execv(sys.executable, [sys.executable, *launch])


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        # Streamlit sets the same option, so a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            reason = "in use" if error.errno == errno.EADDRINUSE else "not allowed"
            raise UsageError(f"Port {port} is {reason}; choose another with --port.") from None

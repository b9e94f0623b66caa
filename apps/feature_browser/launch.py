"""The command line of the app's server: `python -m feature_browser.launch RUNS PORT`."""

import os
import sys
from pathlib import Path

SERVER = {
    "server.address": "127.0.0.1",
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "theme.baseRadius": "6px",
    "theme.baseFontSize": "14",
    "theme.showWidgetBorder": "true",
}

LIGHT = {
    "primaryColor": "#1d61a8",
    "backgroundColor": "#fbfbf9",
    "secondaryBackgroundColor": "#ffffff",
    "textColor": "#1c1d1f",
    "linkColor": "#1d61a8",
    "borderColor": "#e4e4df",
    "codeBackgroundColor": "#f1f1ec",
}

DARK = {
    "primaryColor": "#7db6f0",
    "backgroundColor": "#131517",
    "secondaryBackgroundColor": "#1a1d20",
    "textColor": "#e8e8e4",
    "linkColor": "#7db6f0",
    "borderColor": "#2a2e33",
    "codeBackgroundColor": "#23272b",
}


def runs_directory() -> Path:
    """The directory of runs that the server was started for."""
    return Path(sys.argv[1] if len(sys.argv) > 1 else "runs")


def streamlit_arguments(runs: Path, port: int) -> list[str]:
    """What follows `python -m` to serve the browser for `runs` on 127.0.0.1:`port`."""
    options = {
        **SERVER,
        "server.port": str(port),
        **{f"theme.light.{name}": value for name, value in LIGHT.items()},
        **{f"theme.dark.{name}": value for name, value in DARK.items()},
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    app = Path(__file__).with_name("asgi.py")
    return ["streamlit", "run", str(app), *flags, "--", str(runs)]


def environment() -> dict[str, str]:
    """The server's environment: numpy multiplies on one core in each of the threads that ask it to.

    Threads of its own, which wait by spinning, would hold up those that draw pages.
    """
    return {"OPENBLAS_NUM_THREADS": "1", **os.environ}


if __name__ == "__main__":
    command = [sys.executable, "-m", *streamlit_arguments(Path(sys.argv[1]), int(sys.argv[2]))]
    os.execve(sys.executable, command, environment())

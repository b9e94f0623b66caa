"""The app's server: `python -m feature_browser.shell.launch PORT ADDRESS RUNS [NAME ...]`.

The names are those, beside `localhost`, that it answers to, see `guard`.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

LOCAL = "127.0.0.1"
SERVER = {
    "server.headless": "true",
    # Set here, so that no configuration file of the reader opens what `guard` closes.
    "server.enableCORS": "true",
    "server.enableXsrfProtection": "true",
    "server.enableStaticServing": "false",
    # In MB: only All latents takes a file, one of names.
    "server.maxUploadSize": "32",
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": "false",
    # `saelab browse` has said the address; Streamlit would say it again, and to look for addresses
    # of this machine it would ask a server elsewhere.
    "logger.hideWelcomeMessage": "true",
    "logger.level": "error",
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
    """The directory of runs that the server was started with."""
    return Path(sys.argv[1] if len(sys.argv) > 1 else "runs")


def allowed_names() -> list[str]:
    """The names, beside `localhost`, that the server answers to."""
    return sys.argv[2:]


def streamlit_arguments(
    runs: Path, port: int, address: str = LOCAL, names: Sequence[str] = ()
) -> list[str]:
    """The arguments of `python -m` that serve the browser for `runs` on `address`:`port`."""
    options = {
        **SERVER,
        "server.address": address,
        "server.port": str(port),
        **{f"theme.light.{name}": value for name, value in LIGHT.items()},
        **{f"theme.dark.{name}": value for name, value in DARK.items()},
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    app = Path(__file__).parents[1] / "server" / "asgi.py"
    return ["feature_browser.shell.serve", "run", str(app), *flags, "--", str(runs), *names]


def environment() -> dict[str, str]:
    """The server's environment: numpy multiplies on one core in each calling thread.

    numpy's own threads, which wait by spinning, would slow down those that draw pages.
    """
    return {"OPENBLAS_NUM_THREADS": "1", **os.environ}


if __name__ == "__main__":
    port, address, runs, *names = sys.argv[1:]
    arguments = streamlit_arguments(Path(runs), int(port), address, names)
    os.execve(sys.executable, [sys.executable, "-m", *arguments], environment())

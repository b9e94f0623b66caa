"""`saelab browse`: open the feature browser."""

import errno
import importlib.util
import ipaddress
import os
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, Heading, UsageError

LOCAL = "127.0.0.1"
OPEN = "SAELAB_OPEN"
"""The environment variable that has the app open its own address once it answers."""
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?")


class BrowseArguments(Config):
    """Open the feature browser on a directory of runs.

    It needs no network, and only this machine can reach it. Ctrl-C ends it. The language model of
    the first run is loaded while you look around.

    With --llm the key E has that model explain the latent on the screen: one question, as `saelab
    explain` asks it. The environment variables SAELAB_LLM, SAELAB_BASE_URL and SAELAB_KEY_NAME say
    the same. The key is read from the environment, and written nowhere.

        saelab browse runs
        saelab browse runs --llm qwen3 --base-url http://localhost:8000/v1
    """

    runs: Annotated[Path, Positional("RUNS")] = Path("runs")
    """Directory of runs, searched recursively."""
    port: int = Field(default=8501, ge=1, le=65535)
    """Port to serve on."""
    address: str = LOCAL
    """Address of this machine to serve on; 0.0.0.0 for all addresses. Everybody who can reach it
    can read the runs and write notes: there is no password."""
    open: bool = True
    """Open the page in the browser of this machine, if it has a screen."""
    allow_host: tuple[str, ...] = ()
    """A name, beside localhost and the address, under which browsers may call the server, e.g. that
    of a proxy; may be repeated. Requests for other names are refused, since a page of another site
    could make them."""
    llm: Annotated[str | None, Heading("Who explains")] = None
    """The model that explains latents: its name at the server, or a checkpoint's directory."""
    base_url: str | None = None
    """Address of a server with OpenAI's interface; default: OpenAI's own."""
    key_name: str | None = None
    """The environment variable that holds the key; default: OPENAI_API_KEY."""


def main(arguments: list[str]) -> int:
    """Parse, check, and become the app."""
    args = parse(BrowseArguments, "browse", arguments)
    if not args.runs.is_dir():
        raise UsageError(f"{args.runs} is not a directory; `saelab demo` makes runs/demo.")
    address = _checked_address(args.address)
    names = [_checked_name(name) for name in args.allow_host]
    model = _model(args)
    _check_port(address, args.port)
    if importlib.util.find_spec("feature_browser") is None:
        raise UsageError("The app is not installed beside saelab; install the whole project.")
    host = f"[{address}]" if address.version == 6 else str(address)
    if address.is_unspecified:
        host = LOCAL
    else:
        names.append(host)
    if not address.is_loopback:
        asks = ", and ask the model at your cost" if model else ""
        print(
            f"Whoever reaches this machine can read the runs and write notes{asks}.",
            file=sys.stderr,
        )
    url = f"http://{host}:{args.port}"
    opens = {OPEN: url} if args.open and has_screen(os.environ) else {}
    print(f"{'Opening' if opens else 'Open'} {url}", flush=True)
    launch = [sys.executable, "-m", "feature_browser.shell.launch", str(args.port), str(address)]
    command = [*launch, str(args.runs), *names]
    os.execve(sys.executable, command, {**os.environ, **model, **opens})


def has_screen(environment: Mapping[str, str], platform: str = sys.platform) -> bool:
    """Whether a browser that is opened here would be seen: not by CI, nor over SSH."""
    if environment.get("CI") or environment.get("SSH_CONNECTION"):
        return False
    screens = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return platform in ("darwin", "win32") or any(environment.get(name) for name in screens)


def _model(args: BrowseArguments) -> dict[str, str]:
    """The environment that configures the model; a bad one is refused before the app starts."""
    if args.llm is None:
        if args.base_url is not None or args.key_name is not None:
            raise UsageError("Got --base-url or --key-name without --llm; name the model.")
        return {}
    if not args.llm.strip():
        raise UsageError("Got an empty --llm; give a name.")
    from saelab.clients.choose import client_of, environment_of
    from saelab.clients.endpoint import KEY

    key_name = args.key_name or KEY
    client_of(args.llm, base_url=args.base_url, key_name=key_name)
    return environment_of(args.llm, args.base_url, key_name)


def _checked_address(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        raise UsageError(
            f"--address {address} is not an address; give one of this machine, such as {LOCAL}."
        ) from None


def _checked_name(name: str) -> str:
    """A host name or an address in the form of a browser's `Host` header."""
    try:
        address = ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        if _NAME.fullmatch(name):
            return name.lower()
        raise UsageError(
            f"--allow-host {name} is not a host name; give the name alone, without scheme, port "
            "or *, such as hub.example.org."
        ) from None
    return f"[{address}]" if address.version == 6 else str(address)


def _check_port(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family) as probe:
        # Streamlit sets the same option, so a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((str(address), port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UsageError(f"{address} is not an address of this machine.") from None
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            reason = "in use" if error.errno == errno.EADDRINUSE else "not allowed"
            raise UsageError(f"Port {port} is {reason}; choose another with --port.") from None

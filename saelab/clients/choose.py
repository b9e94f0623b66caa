"""Which client answers: the one that a command names, or the one of the environment."""

import os
from pathlib import Path

from saelab.clients.endpoint import KEY, EndpointClient
from saelab.clients.local import LocalClient
from saelab.clients.question import Client
from saelab.config import UsageError

MODEL, ADDRESS, KEY_NAME = "SAELAB_LLM", "SAELAB_BASE_URL", "SAELAB_KEY_NAME"
"""Environment variables: the model, the server's address, and the name of the variable with its
key. The key itself is in none of them."""


def client_of(
    model: str,
    *,
    base_url: str | None = None,
    key_name: str = KEY,
    timeout: float = 120.0,
    parallel: int = 8,
    device: str = "auto",
) -> Client:
    """The client of a model: a directory is a local checkpoint, any other name a server's.

    Raises:
        UsageError: as `check_there` and `EndpointClient`.
    """
    check_there(model, base_url)
    if base_url is None and Path(model).exists():
        from saelab.lm.checkpoint import location

        return LocalClient(Path(location(model)), device=device)
    return EndpointClient(
        model, base_url=base_url, key_name=key_name, timeout=timeout, parallel=parallel
    )


def check_there(model: str, base_url: str | None) -> None:
    """Refuse a path at which there is nothing; a server of one's own may have models named so.

    Raises:
        UsageError: the message names the path.
    """
    if base_url is None and model.startswith(("/", "./", "../", "~")) and not Path(model).exists():
        raise UsageError(
            f"{model} is not there; give the directory of a checkpoint, or the --base-url of a "
            "server that has a model of this name."
        )


def configured() -> tuple[str, str | None, str] | None:
    """The model, address and key's variable that the environment names; None without a model."""
    model = os.environ.get(MODEL, "").strip()
    address = os.environ.get(ADDRESS, "").strip() or None
    return (model, address, os.environ.get(KEY_NAME, "").strip() or KEY) if model else None


def environment_of(model: str, base_url: str | None, key_name: str) -> dict[str, str]:
    """The environment variables that configure a client."""
    address = {} if base_url is None else {ADDRESS: base_url}
    return {MODEL: model, KEY_NAME: key_name, **address}

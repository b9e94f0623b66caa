"""The ASGI app: the app's script, and routes that answer without running it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from feature_browser.data.catalogue import RunCard
from feature_browser.data.reading import list_runs
from feature_browser.live.model import load, told_of
from feature_browser.live.warm import begin
from feature_browser.pages import pages
from feature_browser.server.find import find
from feature_browser.shell.chrome import MODEL_ROUTE
from feature_browser.shell.dialogs import FIND_ROUTE
from feature_browser.shell.guard import Guard
from feature_browser.shell.launch import runs_directory
from feature_browser.shell.opening import open_if_asked
from saelab.console import silent


def first_run() -> RunCard | None:
    """The run that is shown first."""
    return list_runs(runs_directory()).first


def model_state(request: Request) -> JSONResponse:
    """The state of the language model of the run that the query string names."""
    card = list_runs(runs_directory()).runs.get(request.query_params.get("run", ""))
    state, says = told_of(card) if card else ("not loaded", "")
    return JSONResponse({"state": state, "says": says}, headers={"Cache-Control": "no-store"})


@asynccontextmanager
async def _life(_: st.App) -> AsyncIterator[None]:
    # What the work is at stands on the pages; the terminal has the address, and errors.
    with silent():
        begin(first_run, load)
        open_if_asked()
        yield


app = st.App(
    Path(__file__).with_name("app.py"),
    lifespan=_life,
    routes=[
        Route(MODEL_ROUTE, model_state),
        Route(FIND_ROUTE, find),
        *(Route(path, answer) for p in pages().values() for path, answer in p.routes.items()),
    ],
    middleware=[Middleware(Guard)],
)

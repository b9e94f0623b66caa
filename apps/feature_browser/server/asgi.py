"""What is served: the app's script, and routes that answer without a pass of the script."""

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from starlette.routing import Route

from feature_browser.pages import pages
from feature_browser.shell.guard import Guard

app = st.App(
    Path(__file__).with_name("app.py"),
    routes=[Route(path, answer) for p in pages().values() for path, answer in p.routes.items()],
    middleware=[Middleware(Guard)],
)

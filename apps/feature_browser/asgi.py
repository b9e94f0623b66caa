"""What is served: the app's script, and routes that answer without a pass of the script."""

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from starlette.routing import Route

from feature_browser.pages.latent.routes import latent_page
from feature_browser.shell.guard import Guard

app = st.App(
    Path(__file__).with_name("app.py"),
    routes=[Route("/latent", latent_page)],
    middleware=[Middleware(Guard)],
)

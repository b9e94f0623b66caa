"""The one list of pages: a new one is its file or folder here, which has a PAGE, and a line below.

No page imports another: they lead to each other by `link`, and share what lies outside this folder.
"""

from importlib import import_module

from feature_browser.shell.page import Page

MODULES = [
    "runs",
    "latent",
    "latents",
    "known",
    "attention",
    "circuit",
    "try_it",
    "steering",
    "compare",
    "health",
    "training",
]
"""In the order of the bar at the top."""


def pages() -> dict[str, Page]:
    """Every page by its name, which `?view=` says."""
    found = [import_module(f"{__name__}.{module}").PAGE for module in MODULES]
    return {page.address.view: page for page in found}

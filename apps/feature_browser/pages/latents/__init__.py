"""All latents of a run."""

from feature_browser.pages.latents.address import LatentsAddress
from feature_browser.pages.latents.view import latents_view
from feature_browser.shell.page import Page

PAGE = Page("All latents", LatentsAddress, latents_view, needs_features=True)

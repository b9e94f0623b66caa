"""One latent."""

from feature_browser.pages.latent.address import LatentAddress
from feature_browser.pages.latent.routes import latent_page
from feature_browser.pages.latent.view import latent_view
from feature_browser.shell.page import Page

PAGE = Page(
    "Latent", LatentAddress, latent_view, needs_features=True, routes={"/latent": latent_page}
)

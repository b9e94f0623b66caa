"""Two runs, latent by latent."""

from feature_browser.pages.compare.address import CompareAddress
from feature_browser.pages.compare.view import compare_view
from feature_browser.shell.page import Page

PAGE = Page("Compare", CompareAddress, compare_view)

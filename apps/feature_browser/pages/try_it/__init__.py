"""Prompts that the reader types."""

from feature_browser.pages.try_it.address import TryAddress
from feature_browser.pages.try_it.view import try_view
from feature_browser.shell.page import Page

PAGE = Page("Try it", TryAddress, try_view)

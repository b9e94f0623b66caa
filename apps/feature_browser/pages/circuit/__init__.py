"""Attribution graphs."""

from feature_browser.pages.circuit.address import CircuitAddress
from feature_browser.pages.circuit.view import circuit_view
from feature_browser.shell.page import Page

PAGE = Page("Circuit", CircuitAddress, circuit_view)

"""Steering: scores, and experiments by hand."""

from feature_browser.pages.steering.address import SteeringAddress
from feature_browser.pages.steering.view import steering_view
from feature_browser.shell.page import Page

PAGE = Page("Steering", SteeringAddress, steering_view)

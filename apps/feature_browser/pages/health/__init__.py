"""What a run's latents are like as a whole."""

from feature_browser.pages.health.address import HealthAddress
from feature_browser.pages.health.view import health_view
from feature_browser.shell.page import Page

PAGE = Page("Health", HealthAddress, health_view)

"""How latents of attention heads come about."""

from feature_browser.pages.attention.address import AttentionAddress
from feature_browser.pages.attention.view import attention_view
from feature_browser.shell.page import Page

PAGE = Page("Attention", AttentionAddress, attention_view)

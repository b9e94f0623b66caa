"""Tests for what others build on saelab; they need pytest."""

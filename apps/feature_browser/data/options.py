"""A run's options as a list, for tables."""

from typing import Any


def flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every option by its dotted name."""
    rows: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", "none" if value is None else str(value)))
    return rows

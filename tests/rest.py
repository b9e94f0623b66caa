"""What CI leaves to `make exhaustive`: cases that repeat what others of a test have shown."""

import pytest


def rest(*cases):
    """These cases of a parametrised test, each a value or a tuple of several."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.exhaustive)
        for case in cases
    ]

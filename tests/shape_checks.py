"""The suite's type checker: beartype behind jaxtyping's import hook, without what is done twice."""

from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import jaxtyping
from beartype import beartype

ROOT = Path(__file__).parents[1]
PACKAGES = {ROOT / "saelab", ROOT / "tools"}

CALLS = 20
"""Calls of each function that a test has checked; a training makes thousands alike."""
_tests = [0]


def begin_test():
    """Check the first calls of every function again."""
    _tests[0] += 1


def checked(stand_in):
    """What jaxtyping calls before and after each function to check its types.

    A function has two stand-ins with its signature: one for the parameters, whose return is `Any`,
    and then one for the parameters and the result. The second is left the result alone, since the
    axes that the first has bound still hold. In each test the first CALLS of a function are
    checked. Both are decorated when they are first called, as most workers call few of the
    package's functions. A function inside another is a new one in each call of that: all of them
    share what the first was decorated with.
    """
    hints = stand_in.__annotations__
    if hints.get("return", Any) is not Any:
        hints = stand_in.__annotations__ = {"return": hints["return"]}
    if all(hint is Any for hint in hints.values()):
        return _nothing
    if "<locals>" not in stand_in.__qualname__:
        return _check(stand_in)
    key = stand_in.__module__, stand_in.__qualname__, stand_in.__code__, repr(hints)
    return _checks.get(key) or _checks.setdefault(key, _check(stand_in))


_checks = {}


def _nothing(*args, **kwargs):
    """No annotation says anything."""


def _check(stand_in):
    decorated, test, left = None, None, 0

    def check(*args, **kwargs):
        nonlocal decorated, test, left
        if test != _tests[0]:
            test, left = _tests[0], CALLS
        if not left:
            return None
        left -= 1
        if decorated is None:
            decorated = beartype(stand_in)
        return decorated(*args, **kwargs)

    return check


def keep_compiled_what_is_not_checked():
    """Let other packages be read from their own caches when one of ours imports them.

    The import hook names a cache of its own for all that is imported meanwhile, which would compile
    torch's and transformers' modules again in every process.
    """
    hook = getattr(jaxtyping, "_import_hook", None)
    named = getattr(hook, "_optimized_cache_from_source", None)
    if hook is None or named is None:  # Another version's: see test_patches.
        return

    def cache(typechecker, /, path, debug_override=None):
        if PACKAGES & set(Path(path).parents):
            return named(typechecker, path, debug_override)
        return cache_from_source(path, debug_override)

    hook._optimized_cache_from_source = cache

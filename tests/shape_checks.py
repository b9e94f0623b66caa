"""The suite's type checker: beartype behind jaxtyping's import hook, without what is done twice."""

import functools
import inspect
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
_left: dict[Any, list[int]] = {}
_jaxtyped = jaxtyping.jaxtyped


def begin_test():
    """Check the first calls of every function again."""
    _tests[0] += 1


def check_first_calls():
    """Let jaxtyping's import hook decorate functions with `jaxtyped` of this module."""
    jaxtyping.jaxtyped = jaxtyped  # pyrefly: ignore[bad-assignment]


def jaxtyped(function=None, *, typechecker):
    """`jaxtyping.jaxtyped` for the first CALLS of a function in each test.

    jaxtyping binds the arguments to the signature in each call, whatever the checker does then: a
    quarter of the suite's time. A function is decorated when it is first called, as most workers
    call few of the package's functions. A function inside another is a new one in each call of
    that; all of them share the CALLS.
    """
    if function is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if not inspect.isfunction(function):
        return _jaxtyped(function, typechecker=typechecker)
    if not function.__annotations__:
        return function
    left = _left.setdefault(function.__code__, [-1, 0])
    strict = None

    @functools.wraps(function)
    def checked_at_first(*args, **kwargs):
        __tracebackhide__ = True
        nonlocal strict
        if left[0] != _tests[0]:
            left[:] = _tests[0], CALLS
        if not left[1]:
            return function(*args, **kwargs)
        left[1] -= 1
        if strict is None:
            strict = _jaxtyped(function, typechecker=typechecker)
        return strict(*args, **kwargs)

    return checked_at_first


def checked(stand_in):
    """What jaxtyping calls before and after each function to check its types.

    A function has two stand-ins with its signature: one for the parameters, whose return is `Any`,
    and then one for the parameters and the result. The second is left the result alone, since the
    axes that the first has bound still hold.
    """
    hints = stand_in.__annotations__
    if hints.get("return", Any) is not Any:
        hints = stand_in.__annotations__ = {"return": hints["return"]}
    if all(hint is Any for hint in hints.values()):
        return _nothing
    if "<locals>" not in stand_in.__qualname__:
        return beartype(stand_in)
    key = stand_in.__module__, stand_in.__qualname__, stand_in.__code__, repr(hints)
    return _checks.get(key) or _checks.setdefault(key, beartype(stand_in))


_checks = {}


def _nothing(*args, **kwargs):
    """No annotation says anything."""


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

"""The suite's type checker: beartype behind jaxtyping's import hook, without what is done twice."""

from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

from beartype import beartype
from jaxtyping import _import_hook

ROOT = Path(__file__).parents[1]
PACKAGES = {ROOT / "saelab", ROOT / "tools"}


def checked(stand_in):
    """What jaxtyping calls before and after each function to check its types.

    A function has two stand-ins with its signature: one for the parameters, whose return is `Any`,
    and then one for the parameters and the result. The second is left the result alone, since the
    axes that the first has bound still hold. Both are decorated when they are first called, as most
    workers call few of the package's functions.
    """
    hints = stand_in.__annotations__
    if hints.get("return", Any) is not Any:
        stand_in.__annotations__ = {"return": hints["return"]}
    decorated = None

    def check(*args, **kwargs):
        nonlocal decorated
        if decorated is None:
            decorated = beartype(stand_in)
        return decorated(*args, **kwargs)

    return check


def keep_compiled_what_is_not_checked():
    """Let other packages be read from their own caches when one of ours imports them.

    The import hook names a cache of its own for all that is imported meanwhile, which would compile
    torch's and transformers' modules again in every process.
    """
    named = _import_hook._optimized_cache_from_source

    def cache(typechecker, /, path, debug_override=None):
        if PACKAGES & set(Path(path).parents):
            return named(typechecker, path, debug_override)
        return cache_from_source(path, debug_override)

    _import_hook._optimized_cache_from_source = cache

"""Triton's interpreter, without preparing its language again for each function of a kernel."""

import inspect
import sys
from functools import wraps


def prepare_once_for_each_kernel():
    """Let a device function rely on what the kernel that calls it has prepared.

    The interpreter replaces the members of `triton.language` before every call, which is half the
    time of a kernel of small functions. What the kernel's own call has replaced stays until the
    kernel ends.
    """
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if not hasattr(interpreter, "_LangPatchScope"):  # Not imported, or another version's.
        return
    if hasattr(interpreter._patch_lang, "__wrapped__"):
        return
    prepare, prepared = interpreter._patch_lang, set()
    languages = (interpreter.tl, interpreter.tl.core)

    class Scope(interpreter._LangPatchScope):
        def restore(self):
            prepared.clear()
            super().restore()

    @wraps(prepare)
    def once(fn):
        members = [v for v in fn.__globals__.values() if inspect.ismodule(v)]
        seen = frozenset(id(module) for module in members if module in languages)
        if seen in prepared:
            return Scope()
        scope = prepare(fn)
        prepared.add(seen)
        own = Scope()
        own._changes = scope._changes
        return own

    interpreter._patch_lang = once

"""Checks of what another tool's file states beside its tensors."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from saelab.config import UsageError, shortened

HOOK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")


@dataclass(frozen=True)
class TrainedOn:
    """How the text of an SAE's activations was cut into contexts.

    Attributes:
        prepend_bos: whether each context begins with the model's <bos>.
        context_size: tokens of each context, <bos> included.
        dataset: its name on the hub, if it has one.
        special_token_ids: tokens on which the SAE was not trained.
    """

    prepend_bos: bool
    context_size: int
    dataset: str | None = None
    special_token_ids: tuple[int, ...] = ()


def check_prefixes(source: str, prefixes: tuple[int, ...] | None, d_sae: int) -> None:
    """Refuse Matryoshka widths that do not increase to `d_sae`.

    Raises:
        UsageError: they do not.
    """
    if prefixes is None:
        return
    increasing = all(low < high for low, high in pairwise((0, *prefixes)))
    if not increasing or prefixes[-1:] != (d_sae,):
        raise UsageError(
            f"{source}: the Matryoshka prefixes {shortened(list(prefixes))} "
            f"do not increase to d_sae={d_sae}."
        )


def check_names(source: str, hooks: Iterable[str | None], model: str | None) -> None:
    """Refuse names that could break a path, a terminal or a page.

    Raises:
        UsageError: one of them could.
    """
    for hook in hooks:
        if hook is not None and not HOOK_NAME.fullmatch(hook):
            raise UsageError(
                f"{source}: {shortened(repr(hook))} is no name of a hook; "
                "letters, digits, '_', '-' and '.' are."
            )
    if model is not None and (
        not 0 < len(model) <= 200 or not model.isprintable() or ".." in re.split(r"[/\\]", model)
    ):
        raise UsageError(f"{source}: {shortened(repr(model))} is no name of a language model.")

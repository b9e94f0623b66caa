"""What fixes the order in which a store is served, and the refusal to continue another order."""

from collections.abc import Mapping

from saelab.activations.store import ActivationStore
from saelab.config import UsageError
from saelab.formats.json_file import canonical_digest


def store_digest(store: ActivationStore) -> str:
    """A digest of which rows the store has: a store that grew since has another order."""
    digest = store.manifest.content_digest
    return canonical_digest([digest, list(store.units), list(store.unit_rows)])


def check_same_order(order: Mapping[str, int | str], state: Mapping[str, int | str]) -> None:
    """Refuse a state that was taken from another order.

    Raises:
        UsageError: a field of `order` is different in `state`, or missing.
    """
    for name, value in order.items():
        if state.get(name) != value:
            raise UsageError(
                f"Cannot resume the data order: {name} was {state.get(name)}, is {value}."
            )

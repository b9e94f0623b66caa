"""What fixes the order in which a store is served, and the refusal to resume in another order."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from saelab.activations.store import ActivationStore
from saelab.config import UsageError
from saelab.formats.json_file import canonical_digest


@runtime_checkable
class Position(Protocol):
    """A position in batches of a fixed order, which can be resumed exactly."""

    def state_dict(self) -> dict[str, int | str]:
        """The position of the next batch."""
        ...

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue at a saved position."""
        ...


def store_digest(store: ActivationStore) -> str:
    """A digest of a store's rows: when a store grows, its order changes."""
    digest = store.manifest.content_digest
    others = [store_digest(other) for other in store.beside]
    return canonical_digest([digest, list(store.units), list(store.unit_rows), *others])


def check_same_order(order: Mapping[str, int | str], state: Mapping[str, int | str]) -> None:
    """Refuse a state saved with another order.

    Raises:
        UsageError: a field of `order` differs in `state`, or is missing.
    """
    for name, value in order.items():
        if state.get(name) != value:
            raise UsageError(
                f"Cannot resume the data order: {name} was {state.get(name)}, is {value}."
            )

"""The keys and values that a Hugging Face model keeps of the tokens it has read."""

from typing import Any, final

from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from typing_extensions import override


@final
class NothingKept(DynamicCache):
    """The past of a pass that nobody goes on with: it has no tokens, before the pass and after.

    A pass that is given no past looks in its positions for sequences that are packed side by side,
    for which a GPU is waited for. We pack none.
    """

    @override
    def update(
        self,
        key_states: Float[Tensor, "..."],
        value_states: Float[Tensor, "..."],
        *_: Any,
        **__: Any,
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """The keys and values of this pass alone."""
        return key_states, value_states


@final
class KeyValuePast:
    """Keys and values of every layer, `[row, head, pos, d_head]`."""

    def __init__(self, cache: Cache | None = None) -> None:
        """By default nothing has been read."""
        self.cache = DynamicCache() if cache is None else cache

    @property
    def whole(self) -> bool:
        """Whether each layer keeps the keys and values of all tokens, and nothing else."""
        layers = self.cache.layers
        return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)

    def rows(self, which: Int[Tensor, " n"]) -> "KeyValuePast":
        """A copy of these rows; a row may repeat."""
        copy = DynamicCache()
        for index, layer in enumerate(self.cache.layers):
            assert isinstance(layer, DynamicLayer)
            assert layer.keys is not None
            assert layer.values is not None
            copy.update(layer.keys[which], layer.values[which], index)
        return KeyValuePast(copy)

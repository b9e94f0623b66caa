"""The keys and values that a Hugging Face model keeps of the tokens it has read."""

from typing import final

from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


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

"""A cache of transformers whose layers also hold the key by which an indexer finds each token."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from .cache import is_dynamic, is_new


class IndexedLayer(DynamicLayer):
    """Keys and values of every token, as transformers' growing layer holds them, and index keys [B, N, D] beside."""

    def __init__(self) -> None:
        super().__init__()
        self.index_keys: Tensor | None = None

    def extend(self, new: Tensor) -> Tensor:
        """The index keys of all tokens so far, with these behind them.

        Raises:
            ValueError: Keys and index keys are not of the same tokens, since a forward broke off.
        """
        held, seen = self.index_keys, self.get_seq_length()
        if (0 if held is None else held.shape[1]) != seen:
            raise ValueError(
                f"past_key_values holds {seen} keys and {0 if held is None else held.shape[1]} index keys of a layer, "
                f"since a forward broke off; begin with a new cache"
            )
        self.index_keys = new if held is None else torch.cat([held, new], dim=1)
        return self.index_keys

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self.index_keys = None

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens, counted as transformers counts them."""
        super().crop(tokens_to_remove)
        if self.index_keys is not None:
            self.index_keys = self.index_keys[:, : self.get_seq_length()]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Goes on with the chosen beams."""
        super().reorder_cache(beam_idx)  # type: ignore[bad-argument-type]
        if self.index_keys is not None:
            self.index_keys = self.index_keys.index_select(0, beam_idx.to(self.index_keys.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times, one after the other."""
        super().batch_repeat_interleave(repeats)
        if self.index_keys is not None:
            self.index_keys = self.index_keys.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Goes on with the chosen sequences."""
        super().batch_select_indices(indices)
        if self.index_keys is not None:
            self.index_keys = self.index_keys[indices, ...]


def with_index_keys(cache: Cache | None, layers: int) -> Cache:
    """The cache with layers that hold index keys: a new one, or a growing one that is still empty.

    Raises:
        ValueError: The cache is of another kind, or has begun without index keys.
    """
    if cache is None:
        return Cache(layers=[IndexedLayer() for _ in range(layers)])
    if cache.layers and all(isinstance(layer, IndexedLayer) for layer in cache.layers):
        return cache
    if not (is_dynamic(cache) and is_new(cache)):
        raise ValueError(
            f"past_key_values is a {type(cache).__name__} without index keys; give an empty DynamicCache, or none: the "
            f"model makes its own"
        )
    cache.layers[:] = [IndexedLayer() for _ in range(layers)]
    cache.layer_class_to_replicate = None
    return cache

"""A cache of transformers that holds what each layer's pattern will read again, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, StaticCache, StaticLayer

from ...nn.layer_cache import LayerCache, Scores
from ...patterns import Pattern


class EvictingLayer(CacheLayerMixin):
    """One layer of the cache: a `LayerCache` behind the interface of transformers.

    `update` hands the new keys on as they are; attention itself is what adds them, so that it sees the keys held
    and the new ones before any is dropped.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False

    def __init__(self, pattern: Pattern):
        super().__init__()
        self.pattern = pattern
        self.reset()

    @property
    def nbytes(self) -> int:
        """Memory of keys and values."""
        return self.held.nbytes

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Memory is taken when attention has seen the first keys."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    @torch.compiler.disable  # what is counted here changes at each call, and must not be compiled into a graph
    def update(self, key_states: Tensor, value_states: Tensor, kwargs: object = None) -> tuple[Tensor, Tensor]:
        """The new keys and values alone; `attend` knows the ones before."""
        if self.turn != "keys":
            raise RuntimeError(
                "an evicting cache was given to a model whose attention is not Gossamer's, or no longer: begin with a "
                "new cache after a switch of the attention; or the model's layers run several times in one forward: "
                "then switch with sparsify(model, pattern, evict=False)"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.turn = "attention"
        return key_states, value_states

    @torch.compiler.disable
    def attend(self, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        """Attention of the new tokens to all so far."""
        if self.turn != "attention":
            raise RuntimeError(
                "the layer attends twice to the keys that it gave its cache once; an evicting cache cannot do this: "
                "switch with sparsify(model, pattern, evict=False)"
            )
        self.turn = "over"
        return self.held.attend(q, k, v, scores)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens so far with the new ones, 0)."""
        return self.held.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens so far, those that are no longer held too."""
        return self.held.seen

    def get_max_length(self) -> int:
        """No end."""
        return -1

    def get_max_cache_shape(self) -> int:
        """No end, by the name that transformers 5.4 asks for."""
        return -1

    def reset(self) -> None:
        """Forgets everything."""
        self.held = LayerCache(self.pattern)
        self.turn = "keys"
        """What is next in a forward: the layer's keys, attention to them, or (`over`) another forward."""
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Goes on with the chosen beams."""
        self.held.pick(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times, one after the other."""
        self.held.repeat(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Goes on with the chosen sequences."""
        self.held.pick(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what was dropped for the tokens to remove cannot be had back.

        Raises:
            ValueError: Always, but for nothing to remove.
        """
        if tokens_to_remove:
            raise ValueError(
                "an evicting cache cannot go back: keys that only the removed tokens' past needs are gone; "
                "switch with sparsify(model, pattern, evict=False) for assisted generation"
            )

    def offload(self) -> None:
        """Nothing: what is held is small."""

    def prefetch(self) -> None:
        """Nothing: what is held never left."""


def evicting_cache(patterns: Sequence[Pattern]) -> Cache:
    """A cache with an evicting layer for each pattern.

    >>> from gossamer import Causal, Window
    >>> evicting_cache([Causal() & Window(64)] * 2).get_seq_length()
    0
    """
    return Cache(layers=[EvictingLayer(pattern) for pattern in patterns])


def evicts(cache: object) -> bool:
    """Whether the cache is made of evicting layers."""
    return (
        isinstance(cache, Cache) and len(cache.layers) > 0 and all(isinstance(x, EvictingLayer) for x in cache.layers)
    )


def await_keys(cache: Cache, patterns: Sequence[Pattern]) -> None:
    """Begins a forward with an evicting cache, whose layers take keys only then.

    Raises:
        ValueError: The cache began with other patterns, or a forward broke off when some layers had taken their keys.
    """
    layers: list[Any] = cache.layers
    if [layer.pattern for layer in layers] != list(patterns):
        raise ValueError(
            "past_key_values holds what other patterns than the model's read; what these read may be gone: begin "
            "with a new cache"
        )
    if len({layer.held.seen for layer in layers}) > 1:
        raise ValueError(
            "past_key_values holds more tokens in some layers than in others, since a forward broke off; begin with "
            "a new cache"
        )
    for layer in layers:
        layer.turn = "keys"


def take_over(cache: Cache, patterns: Sequence[Pattern]) -> None:
    """Puts evicting layers in the place of the empty ones of a dynamic cache: whoever holds it goes on holding it."""
    cache.layers[:] = [EvictingLayer(pattern) for pattern in patterns]
    cache.layer_class_to_replicate = None


def keep_all(cache: Cache) -> None:
    """Puts layers that keep every key in the place of those that keep a window: they drop what a pattern may read.

    Raises:
        ValueError: A static cache has no layer that says how long it is to become.
    """
    layers: list[Any] = cache.layers
    if not any(layer.is_sliding for layer in layers):
        return
    if not isinstance(cache, StaticCache):
        cache.layers = [DynamicLayer() if layer.is_sliding else layer for layer in layers]
        return
    whole = [layer.max_cache_len for layer in layers if not layer.is_sliding]
    if not whole:
        raise ValueError(
            "a static cache whose layers are all sliding windows does not say how long it may become; generate "
            "with the default cache, which evicts by the pattern"
        )
    cache.layers = [_whole(layer, whole[0]) if layer.is_sliding else layer for layer in layers]


def _whole(sliding: Any, length: int) -> StaticLayer:
    """A layer of the whole length, which has memory already if the empty one that it stands in for had."""
    layer = StaticLayer(length)
    if sliding.is_initialized:
        layer.lazy_initialization(sliding.keys, sliding.values)
    return layer


def is_new(cache: Cache) -> bool:
    """Whether the cache has seen no token yet; asks no device, which alone knows the length of a whole static layer."""
    layers: list[Any] = cache.layers
    counted = [layer for layer in layers if layer.is_sliding or not isinstance(layer, StaticLayer)]
    if not counted:
        return not any(layer.is_initialized for layer in layers)
    return not any(layer.get_seq_length() for layer in counted)


def is_dynamic(cache: object) -> bool:
    """Whether it is transformers' own growing cache, whose layers may be exchanged while it is empty."""
    return type(cache) is DynamicCache and not cache.offloading


def length_of(cache: Cache | None) -> int | Tensor:
    """Tokens so far; of a static cache, a number that the device alone knows."""
    if cache is None:
        return 0
    if isinstance(cache, StaticCache) and not torch.compiler.is_compiling():
        return int(cache.get_seq_length())
    return cache.get_seq_length()

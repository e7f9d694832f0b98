"""Keys and values of the past, kept so that a new token costs one row of attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..patterns.base import Pattern, require_integer
from .layer_cache import LayerCache, Scores, counted
from .whole_cache import WholeCache


class KVCache:
    """What each layer will read again of the tokens so far: all of them where attention is dense, fewer where not.

    A model's forward calls `attend` once per layer and then `advance` once; until then `length` stays where
    it was, so that each layer of one forward stands at the same place. Meant for inference: nothing is
    differentiated through it.

    >>> import torch
    >>> cache, x = KVCache(capacity=64), torch.ones(1, 2, 48, 8)
    >>> out = cache.attend(0, x, x, x, Causal() & Window(16))
    >>> cache.advance(48)
    >>> cache.length, cache.layers[0].held
    (48, 16)
    """

    differentiable = False

    def __init__(self, capacity: int, *, padding: Sequence[int] | None = None):
        """
        Args:
            capacity: Tokens that a sequence may become long: what an adaptive window is resolved from. No memory is
                taken for them before they come.
            padding: How many of each sequence's first tokens are padding, which nobody sees; by default none.
        """
        self.capacity = require_integer("KVCache", "capacity", capacity, least=1)
        self.padding = None if padding is None else counted("KVCache", padding)
        self.length = 0
        self.layers: dict[int, LayerCache] = {}
        self.whole: dict[int, WholeCache] = {}
        """What layers hold of every token, because they choose at run time what they read."""

    @property
    def nbytes(self) -> int:
        """Memory of all that is held."""
        return sum(layer.nbytes for layer in (*self.layers.values(), *self.whole.values()))

    def positions(self, tokens: int, device: torch.device) -> Int64[Tensor, "*B N"]:
        """Positions of the next `tokens` tokens, counted from each sequence's first one that is no padding."""
        counted = torch.arange(self.length, self.length + tokens, device=device)
        if self.padding is None:
            return counted
        before = torch.tensor(self.padding, device=device)
        return (counted - before[:, None]).clamp(min=0)  # [B, N]

    @torch.compiler.disable  # what is counted here changes at each call, and must not be compiled into a graph
    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G N D"],
        v: Float[Tensor, "B G N D"],
        pattern: Pattern,
        *,
        dropout: float = 0.0,
    ) -> Float[Tensor, "B H N D"]:
        """Attention of the new tokens to those so far, themselves included, over `pattern`.

        Raises:
            ValueError: The new tokens exceed the capacity, their shape or dtype is not that of the ones before, the
                layer had another pattern, or has taken other tokens than `advance` has counted.
        """
        self._require_room(k.shape[2])
        held = self.layers.get(layer) or LayerCache(pattern, padding=self.padding)
        if held.pattern != pattern:
            raise ValueError(
                f"KVCache: layer {layer} began with the pattern {held.pattern}, and now has {pattern}; what the new "
                f"one reads may be gone: begin with a new cache"
            )
        self._require_counted(layer, held.seen)
        out = held.attend(q, k, v, Scores(dropout=dropout))
        self.layers[layer] = held
        return out

    @torch.compiler.disable
    def extend(self, layer: int, new: Sequence[Float[Tensor, "B *_ N _"]]) -> list[Tensor]:
        """What `layer` made of all tokens so far, these the last of them: [B, *G, K, D] for each thing in `new`.

        For attention that chooses what it reads at run time (latents and index keys, say): all is kept.

        Raises:
            ValueError: As `attend`, and where a layer hands over other things than before.
        """
        self._require_room(new[0].shape[-2] if new else 0)
        held = self.whole.get(layer) or WholeCache()
        self._require_counted(layer, held.seen)
        every = held.extend(new, self.capacity)
        self.whole[layer] = held
        return every

    def advance(self, tokens: int) -> None:
        """Counts `tokens` as come: called once, after every layer has taken them."""
        self.length += tokens

    def _require_room(self, tokens: int) -> None:
        end = self.length + tokens
        if end > self.capacity:
            raise ValueError(
                f"KVCache: full: {self.length} of capacity={self.capacity} tokens have come and "
                f"{tokens} more do not fit; make the cache with capacity={end} or more"
            )

    def _require_counted(self, layer: int, seen: int) -> None:
        if seen != self.length:
            raise ValueError(
                f"KVCache: layer {layer} has taken {seen} tokens, but {self.length} are counted: a forward broke "
                f"off, or advance was not called once after each; begin with a new cache"
            )

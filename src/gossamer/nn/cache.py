"""Keys and values of the past, kept so that a new token costs one row of attention."""

import torch
from jaxtyping import Float
from torch import Tensor


class KVCache:
    """Every key and value appended so far, in memory that is allocated once.

    A model's forward calls `append` once per layer and then `advance` once; until then `length` stays where
    it was, so that each layer of one forward writes at the same place. Meant for inference: nothing is
    differentiated through it.

    >>> cache = KVCache(layers=1, batch=1, heads=2, capacity=8, width=4)
    >>> keys, values = cache.append(0, torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
    >>> cache.advance(3)
    >>> keys.shape, cache.length, cache.capacity
    (torch.Size([1, 2, 3, 4]), 3, 8)
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        width: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        sizes = {"layers": layers, "batch": batch, "heads": heads, "capacity": capacity, "width": width}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"KVCache: {name} is {size}; give at least 1")
        shape = tuple(sizes.values())
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    def append(
        self, layer: int, k: Float[Tensor, "B G N D"], v: Float[Tensor, "B G N D"]
    ) -> tuple[Float[Tensor, "B G K D"], Float[Tensor, "B G K D"]]:
        """All keys and values of `layer` so far, the new ones included, as views into the cache.

        Raises:
            ValueError: The new keys do not fit in the capacity, or their shape or dtype is not the cache's.
        """
        self._require_alike("k", k)
        self._require_alike("v", v)
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise ValueError(
                f"KVCache: full: {self.length} of capacity={self.capacity} tokens are held and "
                f"{k.shape[2]} more do not fit; make the cache with capacity={end} or more"
            )
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Counts `tokens` as held: called once, after every layer has appended them."""
        self.length += tokens

    def _require_alike(self, name: str, new: Tensor) -> None:
        _, batch, heads, _, width = self.keys.shape
        if new.dim() != 4 or (new.shape[0], new.shape[1], new.shape[3]) != (batch, heads, width):
            raise ValueError(
                f"KVCache: {name} has shape {list(new.shape)}, but the cache holds "
                f"[{batch}, {heads}, tokens, {width}]; make it with the sizes of the model that fills it"
            )
        if new.dtype != self.keys.dtype:
            raise ValueError(
                f"KVCache: {name} is {new.dtype}, the cache {self.keys.dtype}; make it with dtype={new.dtype}"
            )

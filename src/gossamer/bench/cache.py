"""A cache of keys and values as serving keeps it: of fixed capacity, and not full."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROOM = 128
"""A cache is filled but for one key in so many."""


@dataclass(frozen=True, eq=False)
class Cache:
    """Keys and values of some sequences, all filled alike: what stands behind the last key belongs to nobody."""

    k: Float[Tensor, "B G K D"]
    v: Float[Tensor, "B G K D"]
    lengths: Int[Tensor, " B"]
    """How many keys each sequence has, for kernels that read it on the device."""
    filled: int
    """The same number, for the host."""

    @classmethod
    def of(cls, k: Float[Tensor, "B G K D"], v: Float[Tensor, "B G K D"], filled: int) -> "Cache":
        """A cache in these very tensors, whose rows from `filled` on become NaN: nothing may read them."""
        for x in (k, v):
            x[:, :, filled:] = torch.nan
        return cls(k, v, torch.full(k.shape[:1], filled, dtype=torch.int32, device=k.device), filled)

    @property
    def filled_part(self) -> tuple[Float[Tensor, "B G F D"], Float[Tensor, "B G F D"]]:
        """Keys and values that are there, without a copy."""
        return self.k[:, :, : self.filled], self.v[:, :, : self.filled]


def filled_of(capacity: int) -> int:
    """Keys in a cache with room for `capacity`: at least one place is free."""
    return capacity - max(1, capacity // ROOM)

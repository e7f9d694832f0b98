"""Which part of something is one's own, where several share it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Share(NamedTuple):
    """One of `of` nearly equal shares, counted from 0; they differ by one at most, and the longer ones come first.

    >>> [list(Share(place, 3).among(5)) for place in range(3)]
    [[0, 1], [2, 3], [4]]
    """

    place: int = 0
    of: int = 1

    def among(self, count: int) -> range:
        """Which of `count` things are in it, as `torch.tensor_split` gives them out."""
        each, more = divmod(count, self.of)
        first = self.place * each + min(self.place, more)
        return range(first, first + each + (self.place < more))

    def taken(self, x: Tensor, axis: int) -> Tensor:
        """What is in it of a tensor, along an axis."""
        own = self.among(x.shape[axis])
        return x.narrow(axis, own.start, len(own))


WHOLE = Share()

"""A sliding window of whole blocks (BigBird, arXiv 2007.14062, section 2)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import Bools, Pattern, require_integer


@dataclass(frozen=True, repr=False)
class BlockWindow(Pattern):
    """A query sees its own block of `block` positions and `reach` blocks on either side, each as a whole.

    The blocks are counted from `start`; positions before it see nothing and are not seen. A `Window` moves with every
    query; this one moves a block at a time, so that no block is seen in part.

    >>> BlockWindow(2, reach=1).dense_mask(8).sum(axis=1).tolist()
    [4, 4, 6, 6, 6, 6, 4, 4]

    Raises:
        ValueError: `block` is no positive integer, or `reach` or `start` is negative.
    """

    block: int
    reach: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        for name, least in (("block", 1), ("reach", 0), ("start", 0)):
            object.__setattr__(self, name, require_integer("BlockWindow", name, getattr(self, name), least))

    @property
    def grain(self) -> int:
        return self.block

    def _number(self, position: ArrayLike) -> NDArray[np.int64]:
        """The number of each position's block; negative before the start."""
        return (np.asarray(position) - self.start) // self.block

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        row, column = self._number(q), self._number(k)
        return (row >= 0) & (column >= 0) & (abs(row - column) <= self.reach)

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        top, bottom, left, right = map(self._number, (q_first, q_last, k_first, k_last))
        begun = (bottom >= 0) & (right >= 0)
        near = (top - right <= self.reach) & (left - bottom <= self.reach)
        every = (top >= 0) & (left >= 0) & (bottom - left <= self.reach) & (right - top <= self.reach)
        return begun & near, every

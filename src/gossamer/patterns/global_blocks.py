"""Chosen blocks of keys (BigBird's global blocks, arXiv 2007.14062, section 2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .base import KeySet, require_integer, require_some
from .clauses import Extent


@dataclass(frozen=True, repr=False)
class GlobalBlocks(KeySet):
    """Every query sees the blocks of `block` keys with the given numbers. Joined with its `.T` it is symmetric.

    It is `Tokens` for whole blocks: these are read where they stand, with the other blocks of a pattern, and not
    gathered.

    >>> GlobalBlocks(2, [0, 2]).dense_mask(6)[0].astype(int).tolist()
    [1, 1, 0, 0, 1, 1]

    Raises:
        ValueError: `block` is no positive integer, a number is no integer of at least 0, or there is none.
    """

    block: int
    numbers: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", require_integer("GlobalBlocks", "block", self.block, least=1))
        given = require_some("GlobalBlocks", "numbers", self.numbers)
        numbers = sorted({require_integer("GlobalBlocks", "a number", number, least=0) for number in given})
        object.__setattr__(self, "numbers", tuple(numbers))

    @cached_property
    def _sorted(self) -> NDArray[np.int64]:
        return np.array(self.numbers)

    @property
    def grain(self) -> int:
        return self.block

    def holds(self, positions: NDArray) -> NDArray[np.bool_]:
        return np.isin(positions // self.block, self._sorted)

    def between(self, first: NDArray, last: NDArray) -> NDArray:
        return self._before(last + 1) - self._before(first)

    def _before(self, position: NDArray) -> NDArray:
        """How many positions of the set lie before each position."""
        number, within = np.divmod(position, self.block)
        return self.block * np.searchsorted(self._sorted, number) + within * np.isin(number, self._sorted)

    def clauses(self, extent: Extent) -> None:
        """None, though there is a closed form: columns gathered beside the other blocks would be one launch more."""

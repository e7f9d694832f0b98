"""Chosen keys (Longformer's global tokens, arXiv 2004.05150)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .base import KeySet, require_integer, require_some


@dataclass(frozen=True, repr=False)
class Tokens(KeySet):
    """Every query sees the keys at the given positions. `Tokens(p) | Tokens(p).T` is symmetric.

    >>> Tokens([3, 1]).dense_mask(4)[0].astype(int).tolist()
    [0, 1, 0, 1]

    Raises:
        ValueError: A position is no integer of at least 0, or there is none.
    """

    positions: Sequence[int]

    def __post_init__(self) -> None:
        given = require_some("Tokens", "positions", self.positions)
        positions = sorted({require_integer("Tokens", "a position", position, least=0) for position in given})
        object.__setattr__(self, "positions", tuple(positions))

    @cached_property
    def _sorted(self) -> NDArray[np.int64]:
        return np.array(self.positions)

    def holds(self, positions: NDArray) -> NDArray[np.bool_]:
        return np.isin(positions, self._sorted)

    def between(self, first: NDArray, last: NDArray) -> NDArray:
        return np.searchsorted(self._sorted, last, "right") - np.searchsorted(self._sorted, first, "left")

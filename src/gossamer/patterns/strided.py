"""Every n-th key (Sparse Transformers, arXiv 1904.10509; the design document's global tokens)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .base import KeySet, require_integer


@dataclass(frozen=True, repr=False)
class Strided(KeySet):
    """Every query sees the keys at `offset`, `offset + every`, `offset + 2·every`, …

    The set is the same at any length, so training, prefill and decoding agree.

    >>> Strided(every=3).dense_mask(4)[0].astype(int).tolist()
    [1, 0, 0, 1]

    Raises:
        ValueError: `every` is no positive integer, or `offset` lies outside `0 … every - 1`.
    """

    every: int
    offset: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", require_integer("Strided", "every", self.every, least=1))
        object.__setattr__(self, "offset", require_integer("Strided", "offset", self.offset, least=0))
        if self.offset >= self.every:
            raise ValueError(
                f"Strided: offset is {self.offset}, but keys repeat every {self.every}; "
                f"give an offset from 0 to {self.every - 1}"
            )

    def holds(self, positions: NDArray) -> NDArray[np.bool_]:
        return positions % self.every == self.offset

    def between(self, first: NDArray, last: NDArray) -> NDArray:
        return (last - self.offset) // self.every - (first - 1 - self.offset) // self.every

"""The first few keys (StreamingLLM, arXiv 2309.17453)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .base import KeySet, require_integer


@dataclass(frozen=True, repr=False)
class Sinks(KeySet):
    """Every query sees the first `count` keys of the sequence.

    >>> Sinks(2).dense_mask(4)[0].astype(int).tolist()
    [1, 1, 0, 0]

    Raises:
        ValueError: `count` is no positive integer.
    """

    count: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", require_integer("Sinks", "count", self.count, least=1))

    def holds(self, positions: NDArray) -> NDArray[np.bool_]:
        return (positions >= 0) & (positions < self.count)

    def between(self, first: NDArray, last: NDArray) -> NDArray:
        return np.maximum(np.minimum(last, self.count - 1) - np.maximum(first, 0) + 1, 0)

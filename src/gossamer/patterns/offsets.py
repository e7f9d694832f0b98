"""Sets of distances between a query and a key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = Any
"""A NumPy array or a torch tensor; this package imports no torch."""

UNBOUNDED = 2**62
"""Stands for infinity: no sequence is this long, and sums of a few still fit an int64."""


class Irregular(Exception):
    """A set operation whose result has no closed form; the caller then falls back to blocks."""


@dataclass(frozen=True)
class Offsets:
    """Distances `d = query - key` with `low <= d <= high` and `d % step == 0` (`!= 0` where `on_step` is False)."""

    low: int = -UNBOUNDED
    high: int = UNBOUNDED
    step: int = 1
    on_step: bool = True

    @property
    def empty(self) -> bool:
        return self.low > self.high or (self.step == 1 and not self.on_step)

    @property
    def dense(self) -> bool:
        """Every distance between `low` and `high` belongs to the set."""
        return self.step == 1 and self.on_step

    def holds(self, distance: Array) -> Array:
        """Which distances belong to the set: bools, as an array or a tensor like the distances."""
        inside = (distance >= self.low) & (distance <= self.high)
        return inside if self.dense else inside & ((distance % self.step == 0) == self.on_step)

    def bounds(self, lowest: NDArray, highest: NDArray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(may, must): whether some, and whether every, distance in `lowest..highest` belongs to the set."""
        low, high = np.maximum(lowest, self.low), np.minimum(highest, self.high)
        overlap, inside = low <= high, (lowest >= self.low) & (highest <= self.high)
        if self.dense:
            return overlap, inside
        has_multiple = high // self.step > (low - 1) // self.step
        if self.on_step:
            return overlap & has_multiple, inside & (lowest == highest) & (lowest % self.step == 0)
        return overlap & ~((low == high) & has_multiple), inside & ~has_multiple

    def clip(self, low: int, high: int) -> Offsets:
        return Offsets(max(low, self.low), min(high, self.high), self.step, self.on_step)

    def transposed(self) -> Offsets:
        return Offsets(-self.high, -self.low, self.step, self.on_step)

    def __and__(self, other: Offsets) -> Offsets:
        """Distances in both sets. Raises Irregular where two different steps do not combine into one."""
        step, on_step = _both_steps((self.step, self.on_step), (other.step, other.on_step))
        return Offsets(max(self.low, other.low), min(self.high, other.high), step, on_step)

    def __sub__(self, other: Offsets) -> list[Offsets]:
        """Distances in this set but not in `other`, as disjoint sets."""
        if self.clip(other.low, other.high).empty:
            return [self]
        below, above = self.clip(-UNBOUNDED, other.low - 1), self.clip(other.high + 1, UNBOUNDED)
        within = self & Offsets(other.low, other.high, other.step, not other.on_step)
        return [part for part in (below, within, above) if not part.empty]


def _both_steps(a: tuple[int, bool], b: tuple[int, bool]) -> tuple[int, bool]:
    """The condition equal to both `d % step == 0` (or `!= 0`) conditions together."""
    nothing, anything = (1, False), (1, True)
    if b == anything or a in (b, nothing):
        return a
    if a == anything or b == nothing:
        return b
    if a[1] and b[1]:
        return math.lcm(a[0], b[0]), True
    if a[1] != b[1]:
        on, off = (a, b) if a[1] else (b, a)
        if on[0] % off[0] == 0:  # every multiple of `on` is a multiple of `off`, which is excluded
            return nothing
        raise Irregular(f"multiples of {on[0]} that are no multiples of {off[0]}")
    small, large = sorted((a[0], b[0]))
    if large % small == 0:  # not a multiple of the smaller step excludes the larger one's multiples too
        return small, False
    raise Irregular(f"distances that are multiples of neither {small} nor {large}")

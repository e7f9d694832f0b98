"""The query heads of a plan's groups beside exactly the key heads that they use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ..plan import HeadGroup, Plan


@dataclass(frozen=True)
class HeadRun:
    """Query heads of one group and their key heads, `repeats` query heads to each."""

    group: HeadGroup
    queries: slice
    keys: slice
    repeats: int
    fresh: bool
    """No earlier run uses its key heads: their gradients can be written. Else they add to what is there."""
    alone: bool
    """Its heads are all that there are."""

    def of_queries(self, x: Tensor) -> Tensor:
        """The run's query heads of x [B, H, ...]."""
        return x if self.alone else x[:, self.queries]

    def of_keys(self, x: Tensor) -> Tensor:
        """The run's key heads of x [B, G, ...]."""
        return x if self.alone else x[:, self.keys]


@lru_cache(maxsize=256)
def head_runs(plan: Plan, repeats: int) -> tuple[HeadRun, ...]:
    """Each group's heads, cut where a key head is shared with another group; kept for the last 256 plans."""
    used, runs = 0, []
    for group in plan.groups:
        head = group.first
        while head < group.last:
            whole = (group.last - head) // repeats * repeats if head % repeats == 0 else 0
            end = head + whole if whole else min(group.last, (head // repeats + 1) * repeats)
            keys = slice(head // repeats, (end - 1) // repeats + 1)
            each, fresh, alone = (end - head) // (keys.stop - keys.start), keys.start >= used, end - head == plan.heads
            runs.append(HeadRun(group, slice(head, end), keys, each, fresh, alone))
            head, used = end, keys.stop
    return tuple(runs)

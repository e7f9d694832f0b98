"""The query heads of a plan's groups beside exactly the key heads that they use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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


def head_runs(plan: Plan, repeats: int) -> Iterator[HeadRun]:
    """Each group's heads, cut where a key head is shared with another group."""
    used = 0
    for group in plan.groups:
        head = group.first
        while head < group.last:
            whole = (group.last - head) // repeats * repeats if head % repeats == 0 else 0
            end = head + whole if whole else min(group.last, (head // repeats + 1) * repeats)
            keys = slice(head // repeats, (end - 1) // repeats + 1)
            yield HeadRun(group, slice(head, end), keys, (end - head) // (keys.stop - keys.start), keys.start >= used)
            head, used = end, keys.stop

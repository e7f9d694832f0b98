"""A batch whose sequences differ in more than their numbers, taken sequence by sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ...plan import Plan, in_blocks, resized
from ..problem import Softmax
from .walk import Ends, KnownRuns, Sight


@dataclass(frozen=True)
class Sequence:
    """One sequence of a batch: its queries and keys, and the plan of what they see."""

    number: int
    queries: slice
    keys: slice
    plan: Plan
    sight: Sight | None = None
    """What of the plan they see: all of it where None."""

    def queries_of(self, x: Tensor) -> Tensor:
        """The sequence's part of [B, H, Q, …], a view."""
        return x[self.number : self.number + 1, :, self.queries]

    def keys_of(self, x: Tensor) -> Tensor:
        """The sequence's part of [B, G, K, …], a view."""
        return x[self.number : self.number + 1, :, self.keys]


def apart(softmax: Softmax) -> bool:
    """Whether the sequences of a batch have to be taken one by one."""
    return any(told is not None for told in (softmax.lengths, softmax.within, softmax.runs, softmax.blocks))


def sequences(plan: Plan, softmax: Softmax, batch: int) -> Iterator[Sequence]:
    """Each sequence of a batch of so many. Waits for what the device knows."""
    if softmax.lengths is not None:
        yield from _to_lengths(plan, softmax.lengths)
    elif softmax.blocks is not None:
        layouts = softmax.blocks.visible.expand(batch, -1, -1, -1).cpu().numpy()
        ends = [None] * batch if softmax.within is None else [Ends(*pair) for pair in softmax.within.tolist()]
        for number in range(batch):
            yield Sequence(
                number, slice(None), slice(None), in_blocks(plan, layouts[number], softmax.blocks.size), ends[number]
            )
    elif softmax.within is not None:
        for number, (first, last) in enumerate(softmax.within.clamp(0, plan.keys).tolist()):
            yield Sequence(number, slice(None), slice(None), plan, Ends(first, last))
    elif softmax.runs is not None:
        start, stop = (end.expand(batch, -1).cpu().numpy() for end in softmax.runs)
        for number in range(batch):
            yield Sequence(number, slice(None), slice(None), plan, KnownRuns(start[number], stop[number]))


def _to_lengths(plan: Plan, lengths: Tensor) -> Iterator[Sequence]:
    """The last query of each stands at its last key, and queries before its first key see nothing."""
    for number, length in enumerate(lengths.clamp(0, plan.keys).tolist()):
        queries = min(plan.queries, length)
        yield Sequence(number, slice(plan.queries - queries, None), slice(length), resized(plan, queries, length))

"""Columns on both sides of a window as one run: their keys stand in the list twice.

A query sees the keys that follow its window and those that stand before it: two runs of a list of keys, the first up
to the list's end and the second from its beginning on. In the list written twice they are one run, from the first key
after the window in the one copy to the last before it in the other, and neither end ever falls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..spans import Span


@dataclass(frozen=True, eq=False)
class DoubledSpan(Span):
    """A span whose `keys` are the order of `part` and the same once more; a key's gradient is the sum of both."""

    part: Span
    """The columns of one side."""

    @property
    def outside(self) -> Tensor | None:
        """bool [all keys], those that the order lacks; None where it lacks none."""
        return self.part.outside


def doubled(found: tuple[Span, ...]) -> tuple[Span, ...]:
    """The spans, of which two that can be one run of a doubled list are that. Reads tables: for a plan's first call."""
    rest = list(found)
    for after in found:
        for before in found:
            if after in rest and before in rest and _follow(after, before):
                rest.remove(before)
                rest[rest.index(after)] = _joined(after, before)
    return tuple(rest)


def distinct(span: Span) -> Tensor | None:
    """The span's keys, each once."""
    return span.part.keys if isinstance(span, DoubledSpan) else span.keys


def _follow(after: Span, before: Span) -> bool:
    """Whether every query sees the last keys of the one and the first keys of the other, of one list of columns."""
    if after is before or any(span.queries is not None or span.keys is None for span in (after, before)):
        return False
    if not torch.equal(after.keys, before.keys):
        return False
    return bool((after.stop == after.key_count).all() and (before.start == 0).all())


def _joined(after: Span, before: Span) -> Span:
    """Its tables are there when this returns, on whatever stream they are read."""
    device, keys, stop = after.keys.device, after.keys.cpu().repeat(2), before.stop.cpu() + before.key_count
    return DoubledSpan(
        term=after.term, queries=None, keys=keys.to(device), start=after.start, stop=stop.to(device),
        key_count=2 * after.key_count, all_keys=after.all_keys, offset=after.offset, part=after,
    )  # fmt: skip

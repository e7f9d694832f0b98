"""Spans whose runs the device alone knows: cut to where each sequence lies, or given with the tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from . import run_tables
from .problem import Softmax
from .run_tables import Launch, Order, launched
from .spans import Span


def live(span: Span, softmax: Softmax, launch: Launch = launched) -> Span:
    """The span as a call sees it: itself, unless the call brings ends of its sequences or runs of its own.

    `launch` runs what makes tables.
    """
    if softmax.within is not None:
        queries, keys = _orders(span)
        step, ends = span.term.offsets.step, (span.start, span.stop)
        cut = run_tables.confined(ends, queries, keys, softmax.within, keys=span.all_keys, step=step, launch=launch)
        return ConfinedSpan(*_fields(span, *cut), static=span, within=softmax.within, launch=launch)
    if softmax.runs is not None:
        return GivenSpan(*_fields(span, *(end.contiguous() for end in softmax.runs)), launch=launch)
    return span


@dataclass(frozen=True, eq=False)
class ConfinedSpan(Span):
    """A span of which each sequence sees what lies within its ends; `start` and `stop` are [B, n]."""

    static: Span
    within: Tensor
    launch: Launch

    @cached_property
    def seen_by(self) -> tuple[Tensor, Tensor]:
        """(first, last), int32 [B, m] each, as of any span."""
        (queries, keys), step = _orders(self), self.term.offsets.step
        return run_tables.confined(
            self.static.seen_by, keys, queries, self.within, keys=self.all_keys, step=step, launch=self.launch
        )

    @cached_property
    def outside(self) -> Tensor | None:
        """Those that the order lacks: the same for every call."""
        return self.static.outside


@dataclass(frozen=True, eq=False)
class GivenSpan(Span):
    """All queries and all keys as they stand, and runs that came with them; `start` and `stop` are [B or 1, n]."""

    launch: Launch

    @cached_property
    def seen_by(self) -> tuple[Tensor, Tensor]:
        """(first, last), int32 [B or 1, m] each, as of any span."""
        return run_tables.turned(self.start, self.stop, self.all_keys, launch=self.launch)


def _orders(span: Span) -> tuple[Order, Order]:
    return Order(span.queries, span.query_count, span.offset), Order(span.keys, span.key_count, 0)


def _fields(span: Span, start: Tensor, stop: Tensor) -> tuple:
    return span.term, span.queries, span.keys, start, stop, span.key_count, span.all_keys, span.offset

"""A group's spans as passes: queries in an order, and one or two runs of keys that join in one online softmax."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...plan import Band, Blocks, HeadGroup, Plan, Rows
from ..captured import kept, refuse_capture
from ..live_spans import live
from ..problem import Softmax
from ..spans import Span, spans
from .doubled import doubled
from .launch import launched
from .operands import Diagonal
from .whole_rows import WholeRows

MOST_SEGMENTS = 2
"""Runs of keys that one pass of the sweeping kernels joins."""


@dataclass(frozen=True, eq=False)
class Pass:
    """The spans that queries of one order see in one online softmax."""

    queries: Tensor | None
    """int64 indices of the query axis, None for all as they stand."""
    spans: tuple[Span, ...]
    diagonals: tuple[Diagonal | None, ...]
    """Each span as a plain band, where it is one."""

    def seen(self, softmax: Softmax) -> Pass:
        """The same as a call sees it that brings ends of its sequences, or runs: these are in tables alone."""
        return Pass(
            self.queries, tuple(live(span, softmax, launched) for span in self.spans), (None,) * len(self.spans)
        )


@dataclass(frozen=True, eq=False)
class Joined:
    """Passes of which those are one that can be, and the queries that see every key."""

    passes: tuple[Pass, ...]
    whole: WholeRows | None
    """What they see is in no pass; what the passes say of them counts for nothing."""


def passes(group: HeadGroup, plan: Plan, device: torch.device) -> tuple[Pass, ...]:
    """Spans of all queries two by two, whole rows of keys first, then spans of some queries one by one."""
    return kept(_passes(group, plan, device), device)


def joined(group: HeadGroup, plan: Plan, device: torch.device, *, apart: bool) -> Joined:
    """The same in fewer passes, for calls that bring nothing of their own.

    Queries that see every key are `apart` where asked for, and where a pass of all queries sees all keys as they stand:
    it takes their part of the gradients.
    """
    return kept(_joined(group, plan, device, apart), device)


@lru_cache(maxsize=256)
def only_band(plan: Plan, device: torch.device) -> Diagonal | None:
    """The plain band that is all of the plan, or None where there is more."""
    if len(plan.groups) != 1 or any(isinstance(term, Blocks) for term in plan.groups[0].terms):
        return None
    diagonals = [diagonal for each in _passes(plan.groups[0], plan, device) for diagonal in each.diagonals]
    return diagonals[0] if len(diagonals) == 1 else None


@lru_cache(maxsize=64)
def _passes(group: HeadGroup, plan: Plan, device: torch.device) -> tuple[Pass, ...]:
    return _in_passes(spans(group, plan, device), plan)


@lru_cache(maxsize=64)
def _joined(group: HeadGroup, plan: Plan, device: torch.device, apart: bool) -> Joined:
    refuse_capture(device)
    found = spans(group, plan, device)
    whole = None
    if apart and len(found) == len(group.terms) and any(span.queries is None and span.keys is None for span in found):
        whole = WholeRows.of(found, plan.queries)
    if whole is not None:
        found = tuple(span for span in found if not isinstance(span.term, Rows))
    return Joined(_in_passes(doubled(found), plan), whole)


def _in_passes(found: Iterable[Span], plan: Plan) -> tuple[Pass, ...]:
    plain = sorted((span for span in found if span.queries is None), key=lambda span: span.keys is not None)
    some = [(span,) for span in found if span.queries is not None]
    return tuple(
        Pass(together[0].queries, together, tuple(_diagonal(span, plan) for span in together))
        for together in (*_in_pairs(plain), *some)
    )


def _in_pairs(found: list[Span]) -> Iterator[tuple[Span, ...]]:
    return (tuple(found[index : index + MOST_SEGMENTS]) for index in range(0, len(found), MOST_SEGMENTS))


def _diagonal(span: Span, plan: Plan) -> Diagonal | None:
    if not isinstance(span.term, Band) or span.term.offsets.step > 1 or span.term.documents is not None:
        return None
    shift = plan.keys - plan.queries
    offsets = span.term.offsets.clip(shift - plan.keys + 1, shift + plan.queries - 1)  # no pair is further apart
    return Diagonal(shift - offsets.low, offsets.high - offsets.low + 1)

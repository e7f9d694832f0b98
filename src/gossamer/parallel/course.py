"""What each process computes and sends, for a pattern over a sequence in shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ..ops.choice import Call
from ..patterns import PerHead
from ..patterns.base import Pattern
from ..patterns.parse import checked_text
from ..patterns.section import Run, counted, places, runs_of, within
from .acceptance import part_of
from .heads import Heads, heads_of
from .reads import Reads, Side, reads, section


@dataclass(frozen=True, eq=False)
class SidePart:
    """Queries of this shard that read keys before it, or behind it, and the pattern between them as text."""

    queries: slice
    keys: slice
    """Where the keys stand among all that the part's heads receive."""
    text: str


@dataclass(frozen=True, eq=False)
class RowsPart:
    """Queries that travel to the keys, and the pattern between all of them and the keys of this shard as text."""

    of_ranks: tuple[tuple[Run, ...], ...]
    """Each shard's, counted from its first token."""
    text: str


@dataclass(frozen=True, eq=False)
class OwnPass:
    """Heads that attend to this shard's own tokens in one call, and the pattern as text."""

    queries: slice
    keys: slice
    text: str
    part: int | None
    """The number of the part whose received keys are attended to in the same call; None: no others are."""


@dataclass(frozen=True, eq=False)
class Part:
    """What heads of one pattern exchange."""

    heads: Heads
    sent: tuple[tuple[Run, ...], ...]
    """Keys that each rank is sent, counted from this shard's first token."""
    received: tuple[int, ...]
    """How many keys come from each rank."""
    before: int
    """How many of them stand before this shard."""
    sides: tuple[SidePart, ...]
    rows: RowsPart | None


@dataclass(frozen=True, eq=False)
class Course:
    """All of it: who attends to this shard's own tokens how, and what heads exchange."""

    passes: tuple[OwnPass, ...]
    parts: tuple[Part, ...]


FEW_KEYS = 2
"""Keys that most queries read are waited for, and attended to with a shard's own, where they are at most one in as many
of these: one pass over the queries then does the work of two, and nothing is to be joined. Others come meanwhile."""


@lru_cache(maxsize=256)
def course(
    pattern: Pattern, heads: int, key_heads: int, bounds: tuple[int, ...], rank: int, definitions: int
) -> Course:
    """The course of one process; made once for each pattern and way to cut the sequence.

    Its texts are those of the patterns defined by now: `definitions` is how many there are.

    Raises:
        ValueError: The pattern is written for another number of heads.
    """
    made = [_part(run, bounds, rank) for run in heads_of(pattern, heads, key_heads)]
    parts = tuple(part for part, _ in made)
    here = ((bounds[rank], bounds[rank + 1], 1),)
    if not any(text for _, text in made):
        own = [(section(shared, here, here), last - first) for first, last, shared in pattern.groups(heads)]
        text = checked_text(own[0][0] if len(own) == 1 else PerHead(own))
        return Course((OwnPass(slice(0, heads), slice(0, key_heads), text, None),), parts)
    passes = [
        OwnPass(part.heads.queries, part.heads.keys, text, number)
        if text
        else OwnPass(part.heads.queries, part.heads.keys, checked_text(section(part.heads.pattern, here, here)), None)
        for number, (part, text) in enumerate(made)
    ]
    return Course(tuple(passes), parts)


def calls_of(pattern: Pattern, call: Call, bounds: tuple[int, ...], rank: int) -> Iterator[Call]:
    """The calls of one process, as `acceptance.CallsOf` says."""
    way, held = course(pattern, call.q[1], call.k[1], bounds, rank, call.definitions), bounds[rank + 1] - bounds[rank]

    def made(text: str, heads: slice, queries: int, key_heads: slice, keys: int) -> Call:
        return part_of(call, text, heads.stop - heads.start, queries, key_heads.stop - key_heads.start, keys)

    for each in way.passes:
        come = 0 if each.part is None else sum(way.parts[each.part].received)
        yield made(each.text, each.queries, held, each.keys, held + come)
    for part in way.parts:
        heads = part.heads
        for side in part.sides:
            queries, keys = (span.stop - span.start for span in (side.queries, side.keys))
            yield made(side.text, heads.queries, queries, heads.keys, keys)
        if part.rows is not None:
            yield made(part.rows.text, heads.queries, sum(map(counted, part.rows.of_ranks)), heads.keys, held)


def _part(heads: Heads, bounds: tuple[int, ...], rank: int) -> tuple[Part, str | None]:
    """What these heads exchange; and, where all is attended to at once, the pattern of that as text."""
    ends = list(pairwise(bounds))
    of_ranks = [reads(heads.pattern, bounds[-1], *end) for end in ends]
    (first, stop), mine = ends[rank], of_ranks[rank]
    received = [0 if number == rank else counted(_read(mine, *end)) for number, end in enumerate(ends)]
    text = _at_once(heads.pattern, mine, first, stop) if sum(received) * FEW_KEYS <= stop - first else None
    part = Part(
        heads,
        sent=tuple(_read(other, first, stop) if number != rank else () for number, other in enumerate(of_ranks)),
        received=tuple(received),
        before=sum(received[:rank]),
        sides=() if text else _sides(heads.pattern, mine.sides, first),
        rows=_rows(heads.pattern, of_ranks, ends, rank),
    )
    return part, text


def _at_once(pattern: Pattern, mine: Reads, first: int, stop: int) -> str | None:
    """The pattern between a shard's queries and its own and all received keys, where most queries read of those."""
    if not any(2 * (side.stop - side.first) > stop - first for side in mine.sides):
        return None
    keys = np.concatenate([np.arange(first, stop), *(places(side.keys) for side in mine.sides)])
    return checked_text(section(pattern, ((first, stop, 1),), runs_of(np.sort(keys))))


def _read(found: Reads, first: int, stop: int) -> tuple[Run, ...]:
    """Which of the tokens `first … stop - 1` are read, counted from `first`."""
    return tuple(run for side in found.sides for run in within(side.keys, first, stop))


def _sides(pattern: Pattern, sides: tuple[Side, ...], first: int) -> tuple[SidePart, ...]:
    made, start = [], 0
    for side in sides:
        text = checked_text(section(pattern, ((side.first, side.stop, 1),), side.keys))
        end = start + counted(side.keys)
        made.append(SidePart(slice(side.first - first, side.stop - first), slice(start, end), text))
        start = end
    return tuple(made)


def _rows(pattern: Pattern, of_ranks: list[Reads], ends: list[tuple[int, int]], rank: int) -> RowsPart | None:
    every = tuple(run for found in of_ranks for run in found.rows)
    if not every:
        return None
    own = tuple(within(found.rows, *end) for found, end in zip(of_ranks, ends, strict=True))
    return RowsPart(own, checked_text(section(pattern, every, ((*ends[rank], 1),))))

"""The best of each row of scores, exactly, in three launches; rows of a few thousand scores need the last alone.

A long row is sampled, and gets a bound that somewhat more of its scores reach than are chosen. The second launch reads
the row once and puts those aside with their positions. The third holds them all, and halves the range between the bound
and the best until the last that is chosen is found; of more than it can hold, it finds that eight bits at a time. It
writes in order where all above the last stand, and the first of those that equal it. Where the sample misled, it reads
the whole row in place of what was put aside: slower, and the same choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backend import on

VECTOR = 4
"""Scores, 16 bytes of them, that one load takes."""


BELOW_ALL = tl.constexpr(0x007FFFFF)
"""The key of minus infinity, were it one: those of all scores that may be taken are above."""

LOWEST = tl.constexpr(-3.4028234663852886e38)

IN_REGISTERS = tl.constexpr(8192)
"""Keys that a program of `HOLDERS` warps holds at once: 32 a thread at most."""
HOLDERS = 8


class Narrowed(NamedTuple):
    """What the first launches leave of rows that are long: nothing of the others."""

    bounds: Tensor
    """int32 [R]: a key, whose bits are those of an unsigned number."""
    not_below: Tensor
    """int32 [R]: how many of a row's keys are not below its bound."""
    held: Tensor
    """int64 [R, room]: the scores whose keys are not below, as far as there is room, with their positions in the low
    bits."""


@dataclass(frozen=True)
class RowSelection:
    """How rows are read. All numbers are powers of two."""

    sample: int = 2048
    """Scores of a row that tell its bound; twice as many where few of them would be chosen."""
    room: int = 1024
    """For keys of a row, at least."""
    tile: int = 1024
    """Scores that are read at a time."""

    def select(self, scores: Tensor, visible: Tensor, count: int) -> Tensor:
        """int32 [R, count], as `Selector` says, of float32 scores whose rows have no gaps."""
        found = torch.empty(len(scores), count, dtype=torch.int32, device=scores.device)
        sizes = self._sizes(scores, count)
        narrows = scores.shape[1] > max(sizes["ROOM"], sizes["SAMPLE"])
        with on(scores.device):
            narrowed = self.narrowed(scores[: None if narrows else 0], visible, count)
            given = scores, scores.stride(0) // sizes["UNIT"], visible, *narrowed, found, count
            warps = HOLDERS if narrows else 4
            _select[(len(scores),)](*given, **sizes, NARROWED=narrows, TILE=self.tile, num_warps=warps)
        return found

    def narrowed(self, scores: Tensor, visible: Tensor, count: int) -> Narrowed:
        """What the first two launches leave, on the current device."""
        rows, sizes = len(scores), self._sizes(scores, count)
        bounds, not_below = torch.empty(2, rows, dtype=torch.int32, device=scores.device)
        held = torch.empty(rows, sizes["ROOM"], dtype=torch.int64, device=scores.device)
        given = scores, scores.stride(0) // sizes["UNIT"], visible
        if rows:
            warps = min(max(sizes["SAMPLE"] // 256, 1), 16)  # eight scores a thread
            _sample[(rows,)](*given, bounds, count, **sizes, num_warps=warps)
            _narrow[(rows,)](*given, bounds, not_below, held, **sizes, TILE=self.tile, EACH=VECTOR, num_warps=4)
        return Narrowed(bounds, not_below, held)

    def _sizes(self, scores: Tensor, count: int) -> dict[str, int]:
        """What is fixed when a kernel is compiled: there is room for what a bound may let through, and for more by
        four standard deviations."""
        keys = scores.shape[1]
        sample = self.sample if count * self.sample >= 32 * keys else 2 * self.sample
        chosen = count * sample / max(keys, 1)
        rank = _rank(chosen)
        room = triton.next_power_of_2(int(count * (rank + 4 * rank**0.5) / max(chosen, 1e-9)))
        unit = VECTOR if _in_vectors(scores) else 1
        return {"SAMPLE": sample, "ROOM": max(self.room, min(room, triton.next_power_of_2(keys))), "UNIT": unit}


def _rank(chosen: float) -> float:
    """In a sample, of the bound, where so many of it are expected to be chosen: that many hardly ever are."""
    return chosen + 4 * chosen**0.5 + 8


def select_top(scores: Tensor, visible: Tensor, count: int) -> Tensor:
    """int32 [R, count], as `Selector` says, of float32 scores [R, K] whose rows have no gaps."""
    return RowSelection().select(scores, visible, count)


def _in_vectors(scores: Tensor) -> bool:
    """Whether rows start where vectors do, and the vector that holds a row's last score lies in its memory."""
    rows, keys = scores.shape
    end = scores.storage_offset() + (rows - 1) * scores.stride(0) + -(-keys // VECTOR) * VECTOR
    return scores.stride(0) % VECTOR == 0 and 4 * end <= scores.untyped_storage().nbytes()


@triton.jit
def _sample(scores, apart, visible, bounds, count, SAMPLE: tl.constexpr, ROOM: tl.constexpr, UNIT: tl.constexpr):
    """Finds a bound that hardly ever fewer than `count` of a row's scores reach, and seldom many more.

    It is the key of a rank in the sample four standard deviations beyond those that are chosen (as `_rank` says), its
    last eight bits left out. One score is drawn from each of as many equal parts of the row.
    """
    row = tl.program_id(0).to(tl.int64)
    seen = tl.load(visible + row)
    if seen > tl.maximum(ROOM, SAMPLE):
        scores += row * apart * UNIT
        part = tl.arange(0, SAMPLE)
        size = (seen // SAMPLE).to(tl.uint32)
        drawn = ((part.to(tl.uint32) * 0x9E3779B1) >> 8) % size  # scattered: what comes every so many keys is met too
        at = (part.to(tl.int64) * seen // SAMPLE).to(tl.int32) + drawn.to(tl.int32)
        key = _ordered(tl.load(scores + at))
        expected = count * (SAMPLE / seen.to(tl.float32))
        rank = tl.minimum(expected + 4.0 * tl.sqrt(expected) + 8.0, SAMPLE).to(tl.int32)
        bound = tl.full((), 0, tl.uint32)
        above = 0
        for digit in tl.static_range(3):
            alike = part < SAMPLE
            if digit > 0:
                alike = (key >> (32 - 8 * digit)) == (bound >> (32 - 8 * digit))
            counts = tl.histogram(((key >> (24 - 8 * digit)) & 0xFF).to(tl.int32), 256, mask=alike)
            found, above = _digit(counts, rank, above)
            bound |= found.to(tl.uint32) << (24 - 8 * digit)
        tl.store(bounds + row, tl.maximum(bound, 1).to(tl.int32, bitcast=True))


@triton.jit
def _narrow(
    scores, apart, visible, bounds, not_below, held,
    SAMPLE: tl.constexpr, ROOM: tl.constexpr, UNIT: tl.constexpr, TILE: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Puts aside the scores of a row that are not below its bound, as far as there is room, and counts them all.

    A thread has `EACH` scores that stand side by side, and adds them up before threads add theirs: few do per tile.
    """
    row = tl.program_id(0).to(tl.int64)
    seen = tl.load(visible + row)
    if seen > tl.maximum(ROOM, SAMPLE):
        scores += row * apart * UNIT
        held += row * ROOM
        least = _score_of(tl.load(bounds + row).to(tl.uint32, bitcast=True))
        before = 0
        inside = EACH * tl.arange(0, TILE // EACH)[:, None] + tl.arange(0, EACH)[None, :]
        whole = seen // TILE * TILE
        for first in tl.range(0, whole, TILE, num_stages=4):
            score = tl.load(scores + first + inside)
            before = _put_aside(held, score, score >= least, first + inside, before, ROOM)
        at = whole + inside
        score = tl.load(scores + at, mask=at < tl.cdiv(seen, UNIT) * UNIT, other=float("-inf"))
        before = _put_aside(held, score, (score >= least) & (at < seen), at, before, ROOM)
        tl.store(not_below + row, before)


@triton.jit
def _put_aside(held, score, kept, at, before, ROOM: tl.constexpr):
    """Writes the kept ones of a tile behind those `before`, and says how many there are now."""
    counted = kept.to(tl.int32)
    own = tl.sum(counted, 1)
    place = before + (tl.cumsum(own, 0) - own)[:, None] + tl.cumsum(counted, 1) - 1
    item = (score.to(tl.int32, bitcast=True).to(tl.int64) << 32) | at
    tl.store(held + place, item, mask=kept & (place < ROOM))
    return before + tl.sum(own, 0)


@triton.jit
def _score_of(key):
    """The score of a key; the lowest finite one where the key is below that of all."""
    bits = tl.where(key >= 0x80000000, key ^ 0x80000000, key ^ 0xFFFFFFFF)
    return tl.where(key <= BELOW_ALL, LOWEST, bits.to(tl.float32, bitcast=True))


@triton.jit
def _select(
    scores, apart, visible, bounds, not_below, held, found, count,
    SAMPLE: tl.constexpr, ROOM: tl.constexpr, UNIT: tl.constexpr, NARROWED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Writes where the best of a row stand."""
    row = tl.program_id(0).to(tl.int64)
    seen = tl.load(visible + row)
    scores += row * apart * UNIT
    held += row * ROOM
    found += row * count
    least = tl.full((), 0, tl.uint32)
    larger, held_keys, known = 0, 0, 0
    if NARROWED:  # noqa: SIM102  the one is known when it is compiled, the other is not
        if seen > tl.maximum(ROOM, SAMPLE):
            held_keys = tl.load(not_below + row)
            if held_keys > ROOM:  # most of them may be alike
                least = tl.load(bounds + row).to(tl.uint32, bitcast=True)
                larger = _larger(scores, seen, least, UNIT, TILE)
                known = (larger < count).to(tl.int32)  # the bound is the last chosen
    if (held_keys >= count) & (held_keys <= ROOM):
        if NARROWED and ROOM <= IN_REGISTERS:
            bound = tl.load(bounds + row).to(tl.uint32, bitcast=True)
            least, larger = _halved(held, held_keys, count, bound, ROOM)
        else:
            least, larger = _ranked(held, held_keys, count, True, 1, TILE)
        written = _write(held, held_keys, least, count - larger, found, True, 1, TILE)
    else:
        if (seen > count) & (known == 0):
            least, larger = _ranked(scores, seen, count, False, UNIT, TILE)
        written = _write(scores, seen, least, count - larger, found, False, UNIT, TILE)
    for first in tl.range(written // TILE * TILE, count, TILE):
        place = first + tl.arange(0, TILE)
        tl.store(found + place, -1, mask=(place >= written) & (place < count))


@triton.jit
def _halved(held, length, rank, bound, ROOM: tl.constexpr):
    """(a key, how many are above it): those and, if they are fewer than `rank`, keys that equal it are the largest.

    What lies between `bound`, which no key is below, and the largest key is halved until one key parts them. Scores
    that are no more alike than chance has it are parted soon.
    """
    at = tl.arange(0, ROOM)
    key = _ordered_number(_score_in(tl.load(held + at, mask=at < length, other=0)))
    key = tl.where(at < length, key, 0)
    low, high = bound, tl.max(key, 0) + 1
    not_below, above = length, 0  # as many keys are not below `low`, and not below `high`
    while (not_below > rank) & (high - low > 1):
        middle = low + (high - low) // 2
        reach = tl.sum((key >= middle).to(tl.int32), 0)
        if reach >= rank:
            low, not_below = middle, reach
        else:
            high, above = middle, reach
    parted = not_below == rank
    return tl.where(parted, low - 1, low), tl.where(parted, rank, above)


@triton.jit
def _ranked(source, length, rank, HELD: tl.constexpr, UNIT: tl.constexpr, TILE: tl.constexpr):
    """(the key of a rank, the largest has rank 1; how many are above it), eight bits of it at a time."""
    least = tl.full((), 0, tl.uint32)
    above = 0
    for digit in tl.static_range(4):
        counts = tl.zeros((256,), tl.int32)
        for first in tl.range(0, length, TILE):
            at = first + tl.arange(0, TILE)
            if HELD:
                key = _ordered_number(_score_in(tl.load(source + at, mask=at < length, other=0)))
            else:
                key = _ordered_scores(source, at, length, UNIT)
            alike = at < length
            if digit > 0:
                alike &= (key >> (32 - 8 * digit)) == (least >> (32 - 8 * digit))
            counts += tl.histogram(((key >> (24 - 8 * digit)) & 0xFF).to(tl.int32), 256, mask=alike)
        found, above = _digit(counts, rank, above)
        least |= found.to(tl.uint32) << (24 - 8 * digit)
    return least, above


@triton.jit
def _larger(scores, length, key, UNIT: tl.constexpr, TILE: tl.constexpr):
    """How many of a row's keys are above one."""
    found = tl.zeros((TILE,), tl.int32)
    for first in tl.range(0, length, TILE):
        found += (_ordered_scores(scores, first + tl.arange(0, TILE), length, UNIT) > key).to(tl.int32)
    return tl.sum(found, 0)


@triton.jit
def _digit(counts, rank, above):
    """(the digit of the key of this rank, how many keys are above all that have this digit)"""
    bins = tl.arange(0, 256)
    not_below = above + tl.cumsum(counts, 0, reverse=True)
    digit = tl.sum((not_below >= rank).to(tl.int32), 0) - 1
    return digit, above + tl.sum(tl.where(bins > digit, counts, 0), 0)


@triton.jit
def _write(source, length, least, equal, found, HELD: tl.constexpr, UNIT: tl.constexpr, TILE: tl.constexpr):
    """Writes the positions of all keys above `least` and of the first `equal` ones that are `least`; says how many."""
    larger_before, equal_before = 0, 0
    for first in tl.range(0, length, TILE):
        at = first + tl.arange(0, TILE)
        position = at
        if HELD:
            given = tl.load(source + at, mask=at < length, other=0)
            key, position = tl.where(at < length, _ordered_number(_score_in(given)), 0), given.to(tl.int32)
        else:
            key = _ordered_scores(source, at, length, UNIT)
        is_larger, is_equal = key > least, (key == least) & (key > 0)
        each = is_larger.to(tl.int32) + (is_equal.to(tl.int32) << 16)
        up_to = tl.cumsum(each, 0)
        equals = equal_before + (up_to >> 16)
        place = larger_before + (up_to & 0xFFFF) + tl.minimum(equals, equal) - 1
        tl.store(found + place, position, mask=is_larger | (is_equal & (equals <= equal)))
        both = tl.sum(each, 0)
        larger_before += both & 0xFFFF
        equal_before += both >> 16
    return larger_before + tl.minimum(equal_before, equal)


@triton.jit
def _score_in(held):
    """The score of what was put aside."""
    return (held >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _ordered_scores(scores, at, length, UNIT: tl.constexpr):
    """Keys of a row's scores; 0 beyond its end. Vectors of `UNIT` are loaded whole, or the mask would part them."""
    given = tl.load(scores + at, mask=at < tl.cdiv(length, UNIT) * UNIT, other=0.0)
    return tl.where(at < length, _ordered(given), 0)


@triton.jit
def _ordered(scores):
    """Numbers of 32 bits in the order of the scores: 0 for minus infinity and NaN, which are never taken.

    By bits alone, so that nothing depends on how small numbers are compared; both zeros are one.
    """
    bits = scores.to(tl.uint32, bitcast=True)
    return tl.where(((bits & 0x7FFFFFFF) > 0x7F800000) | (bits == 0xFF800000), 0, _ordered_number(scores))


@triton.jit
def _ordered_number(scores):
    """The same for scores that are neither."""
    bits = scores.to(tl.int32, bitcast=True)
    key = (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)
    return tl.where((bits & 0x7FFFFFFF) == 0, 0x80000000, key)

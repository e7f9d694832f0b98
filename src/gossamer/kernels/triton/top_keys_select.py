"""The best of each row of scores, exactly: two launches, of which the first leaves few scores to the second.

A long row is sampled; a score below the sample's lower bound for the choice is read once and never again. What is not
below it stands side by side then, with its positions, and the second launch finds the threshold among it, eight bits
at a time, and writes what is above in order. Where the bound was bad, or too much equals it, the second launch reads
the whole row: slower, and the same choice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backend import on

VECTOR = 4
"""Scores, 16 bytes of them, that one load takes."""


def select_top(
    scores: Tensor, visible: Tensor, count: int, *, sample: int = 4096, tile: int = 2048, least: int = 1024
) -> Tensor:
    """int32 [R, count], as `Selector` says, of float32 scores whose rows lie side by side.

    `sample` scores of a row tell a bound for the choice, if there are more than four times as many as are chosen, and
    than `least`; `tile` are read at a time. All are powers of two.
    """
    rows, keys = scores.shape
    found = torch.empty(rows, count, dtype=torch.int32, device=scores.device)
    room = max(least, 4 * triton.next_power_of_2(count))
    narrows = keys > max(room, sample)
    narrowed = torch.empty(rows if narrows else 0, 3, dtype=torch.int32, device=scores.device)
    held = torch.empty(2, rows if narrows else 0, room, dtype=torch.int32, device=scores.device)
    vector = VECTOR if _in_vectors(scores) else 1
    shared = scores, scores.stride(0) // vector, visible, narrowed, held[0], held[1]
    with on(scores.device):
        if narrows:
            _narrow[(rows,)](*shared, count, SAMPLE=sample, ROOM=room, TILE=tile, UNIT=vector, num_warps=8)
        _select[(rows,)](
            *shared, found, count, NARROWED=narrows, ROOM=room, TILE=tile, UNIT=vector, num_warps=4
        )  # fmt: skip
    return found


def _in_vectors(scores: Tensor) -> bool:
    """Whether rows start where vectors do, and the vector that holds a row's last score lies in its memory."""
    rows, keys = scores.shape
    end = scores.storage_offset() + (rows - 1) * scores.stride(0) + -(-keys // VECTOR) * VECTOR
    return scores.stride(0) % VECTOR == 0 and 4 * end <= scores.untyped_storage().nbytes()


@triton.jit
def _sample(scores, apart, visible, bounds, count, SAMPLE: tl.constexpr, ROOM: tl.constexpr, UNIT: tl.constexpr):
    """Finds a bound that hardly ever fewer than `count` of a row's scores reach, and seldom many more.

    It is the key of a rank in the sample that lies four standard deviations below that of the choice, its last eight
    bits left out. One score is drawn from each of as many equal parts of the row.
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
    scores, apart, visible, bounds, narrowed, held, held_at,
    SAMPLE: tl.constexpr, ROOM: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Puts aside the scores of a row that are not below its bound, as far as there is room, and counts them all."""
    row = tl.program_id(0).to(tl.int64)
    seen = tl.load(visible + row)
    if seen > tl.maximum(ROOM, SAMPLE):
        scores += row * apart * UNIT
        held += row * ROOM
        held_at += row * ROOM
        bound = tl.load(bounds + row).to(tl.uint32, bitcast=True)
        not_below, above = 0, 0
        for first in tl.range(0, seen, TILE, num_stages=3):
            at = first + tl.arange(0, TILE)
            key = _loaded(scores, at, seen, False, UNIT)
            kept = (key >= bound).to(tl.int32)
            place = not_below + tl.cumsum(kept, 0) - 1
            fits = (key >= bound) & (place < ROOM)
            tl.store(held + place, key.to(tl.int32, bitcast=True), mask=fits)
            tl.store(held_at + place, at, mask=fits)
            both = tl.sum(kept + ((key > bound).to(tl.int32) << 16), 0)  # a tile is smaller than that
            not_below += both & 0xFFFF
            above += both >> 16
        tl.store(narrowed + 2 * row, not_below)
        tl.store(narrowed + 2 * row + 1, above)


@triton.jit
def _select(
    scores, apart, visible, narrowed, held, held_at, found, count,
    NARROWED: tl.constexpr, ROOM: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Writes where the best of a row stand."""
    row = tl.program_id(0).to(tl.int64)
    seen = tl.load(visible + row)
    scores += row * apart * UNIT
    found += row * count
    written = 0
    if seen <= count:
        written = _write(scores, None, seen, tl.full((), 0, tl.uint32), 0, found, TILE, UNIT)
    else:
        not_below, above = 0, count
        bound = tl.full((), 0, tl.uint32)
        if NARROWED:
            if seen > ROOM:
                not_below = tl.load(narrowed + 3 * row)
                above = tl.load(narrowed + 3 * row + 1)
                bound = tl.load(narrowed + 3 * row + 2).to(tl.uint32, bitcast=True)
        if (not_below >= count) & (not_below <= ROOM):
            least, larger = _ranked(held + row * ROOM, not_below, count, True, TILE, 4)
            written = _write(held + row * ROOM, held_at + row * ROOM, not_below, least, count - larger, found, TILE, 4)
        else:
            if (not_below < count) | (above >= count):
                bound, above = _ranked(scores, seen, count, False, TILE, UNIT)
            written = _write(scores, None, seen, bound, count - above, found, TILE, UNIT)
    for first in tl.range(written // TILE * TILE, count, TILE):
        place = first + tl.arange(0, TILE)
        tl.store(found + place, -1, mask=(place >= written) & (place < count))


@triton.jit
def _ranked(source, length, rank, ORDERED: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr):
    """(the key of a rank, the largest has rank 1; how many are above it), eight bits of it at a time."""
    least = tl.full((), 0, tl.uint32)
    above = 0
    for digit in tl.static_range(4):
        counts = tl.zeros((256,), tl.int32)
        for first in tl.range(0, length, TILE):
            at = first + tl.arange(0, TILE)
            key = _loaded(source, at, length, ORDERED, UNIT)
            alike = at < length
            if digit > 0:
                alike &= (key >> (32 - 8 * digit)) == (least >> (32 - 8 * digit))
            counts += tl.histogram(((key >> (24 - 8 * digit)) & 0xFF).to(tl.int32), 256, mask=alike)
        found, above = _digit(counts, rank, above)
        least |= found.to(tl.uint32) << (24 - 8 * digit)
    return least, above


@triton.jit
def _digit(counts, rank, above):
    """(the digit of the key of this rank, how many keys are above all that have this digit)"""
    bins = tl.arange(0, 256)
    not_below = above + tl.cumsum(counts, 0, reverse=True)
    digit = tl.sum((not_below >= rank).to(tl.int32), 0) - 1
    return digit, above + tl.sum(tl.where(bins > digit, counts, 0), 0)


@triton.jit
def _write(source, positions, length, least, equal, found, TILE: tl.constexpr, UNIT: tl.constexpr):
    """Writes the positions of all keys above `least` and of the first `equal` ones that are `least`; says how many."""
    larger_before, equal_before = 0, 0
    for first in tl.range(0, length, TILE):
        at = first + tl.arange(0, TILE)
        key = _loaded(source, at, length, positions is not None, UNIT)
        is_larger, is_equal = key > least, (key == least) & (key > 0)
        each = is_larger.to(tl.int32) + (is_equal.to(tl.int32) << 16)
        up_to = tl.cumsum(each, 0)
        larger = larger_before + (up_to & 0xFFFF)
        equals = equal_before + (up_to >> 16)
        taken = is_larger | (is_equal & (equals <= equal))
        place = larger + tl.minimum(equals, equal) - 1
        position = at
        if positions is not None:
            position = tl.load(positions + at, mask=taken, other=0)
        tl.store(found + place, position, mask=taken)
        both = tl.sum(each, 0)
        larger_before += both & 0xFFFF
        equal_before += both >> 16
    return larger_before + tl.minimum(equal_before, equal)


@triton.jit
def _loaded(source, at, length, ORDERED: tl.constexpr, UNIT: tl.constexpr):
    """Keys, of scores or of keys; 0 beyond the end. Vectors of `UNIT` are loaded whole, or the mask would part them."""
    given = tl.load(source + at, mask=at < tl.cdiv(length, UNIT) * UNIT, other=0)
    key = given.to(tl.uint32, bitcast=True) if ORDERED else _ordered(given)
    return tl.where(at < length, key, 0)


@triton.jit
def _ordered(scores):
    """Numbers of 32 bits in the order of the scores: 0 for minus infinity and NaN, which are never taken.

    By bits alone, so that nothing depends on how small numbers are compared; both zeros are one.
    """
    bits = scores.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    key = tl.where(bits == size, bits ^ 0x80000000, bits ^ 0xFFFFFFFF)
    key = tl.where(size == 0, 0x80000000, key)
    return tl.where((size > 0x7F800000) | (bits == 0xFF800000), 0, key)

"""Rows of a choice by kernels: in one pass where they are in order, as `top_keys` leaves them.

A row that is not in order goes through a table. To be listed, a number sets its bit there; to stand, each has a cell in
which its least place stays: whatever order threads come in, the table is the same.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..selectors.selection import Selection
from .devices import NO_CHANGE, made_current, multiprocessors

TILE = 1024
"""Numbers that a program looks at together."""
PROGRAMS = 2
"""Of a multiprocessor: each has a table of its own."""


def ordered_rows(selection: Selection, keys: int) -> tuple[Tensor, Tensor]:
    """(`indices`, `counts`) of `Rows`: keys, or blocks, of a choice without a mask."""
    return _rows(selection, keys, stands=False)


def standing_rows(selection: Selection, keys: int) -> Tensor:
    """`Selection.standing` of all queries, of single keys without a mask."""
    return _rows(selection, keys, stands=True)[0]


def _rows(selection: Selection, keys: int, *, stands: bool) -> tuple[Tensor, Tensor]:
    indices, block = selection.indices.contiguous(), selection.block_size
    batch, runs, queries, size = indices.shape
    rows = torch.empty_like(indices, dtype=torch.int32)
    counts = rows.new_empty(batch, runs, queries)
    device, total, places = indices.device, counts.numel(), -(-keys // block)
    programs = min(total, PROGRAMS * multiprocessors(device) if device.type == "cuda" else PROGRAMS)
    if programs:
        table = rows.new_empty(programs, places if stands else -(-places // 32))
        numbers = total, queries, keys, size, places
        constants: dict[str, Any] = {
            "BLOCK": block,
            "CAUSAL": selection.causal,
            "STANDS": stands,
            "TILE": TILE,
            "num_warps": 8,
        }
        with made_current(device) if device.type == "cuda" else NO_CHANGE:
            _put_in_order[(programs,)](indices, rows, counts, table, *numbers, **constants)
    return rows, counts


@triton.jit
def _numbers(indices, place, size, limit):
    """Numbers at places of a row, and which of them are visible."""
    number = tl.load(indices + place, mask=place < size, other=-1).to(tl.int64)
    return number, (number >= 0) & (number < limit)


@triton.jit
def _copied(indices, rows, size, limit, TILE: tl.constexpr):
    """(whether a row is in order, how many numbers are visible), having copied these, and -1 in place of others."""
    fine, count = tl.full([], 1, tl.int32), tl.full([], 0, tl.int32)
    for first in range(0, size, TILE):
        place = first + tl.arange(0, TILE)
        number, seen = _numbers(indices, place, size, limit)
        before, seen_before = _numbers(indices, tl.maximum(place - 1, 0), size, limit)
        follows = (place == 0) | (seen_before & (before < number))
        fine = tl.minimum(fine, tl.min((follows | ~seen).to(tl.int32)))
        count += tl.sum(seen.to(tl.int32))
        tl.store(rows + place, tl.where(seen, number, -1).to(tl.int32), mask=place < size)
    return fine, count


@triton.jit
def filled(table, size, value, TILE: tl.constexpr):
    """Writes a value to all cells of a table; what was read and written there before is done, and so is this."""
    tl.debug_barrier()
    for first in range(0, size, TILE):
        cell = first + tl.arange(0, TILE)
        tl.store(table + cell, tl.full([TILE], 0, tl.int32) + value, mask=cell < size)
    tl.debug_barrier()


@triton.jit
def marked(indices, marks, size, limit, TILE: tl.constexpr):
    """How many numbers of a row are visible, one that is repeated each time; sets the bit of each."""
    count = tl.full([], 0, tl.int32)
    for first in range(0, size, TILE):
        number, seen = _numbers(indices, first + tl.arange(0, TILE), size, limit)
        number = number.to(tl.int32)
        tl.atomic_or(marks + (number >> 5), tl.full([TILE], 1, tl.int32) << (number & 31), mask=seen)
        count += tl.sum(seen.to(tl.int32))
    return count


@triton.jit
def listed(marks, rows, members, places, TOGETHER: tl.constexpr, TILE: tl.constexpr):
    """How many numbers have a bit in any of some rows of marks, written in ascending order, with whose it is.

    Of several rows the members are written: a bit for each of them that has the number.
    """
    words = tl.cdiv(places, 32)
    count = tl.full([], 0, tl.int32)
    tl.debug_barrier()
    for first in range(0, places, TILE):
        number = first + tl.arange(0, TILE)
        bits = tl.zeros([TILE], tl.int32)
        for m in tl.static_range(TOGETHER):  # past the first cache, which does not know what atomics have written
            word = tl.load(marks + m * words + (number >> 5), mask=number < places, other=0, cache_modifier=".cg")
            bits |= ((word >> (number & 31)) & 1) << m
        seen = bits != 0
        place = count + tl.cumsum(seen.to(tl.int32), 0) - 1
        tl.store(rows + place, number, mask=seen)
        if TOGETHER > 1:
            tl.store(members + place, bits, mask=seen)
        count += tl.sum(seen.to(tl.int32))
    return count


@triton.jit
def _in_order(indices, marks, rows, size, places, limit, TILE: tl.constexpr):
    """How many numbers are visible, written in ascending order and -1 behind."""
    filled(marks, tl.cdiv(places, 32), 0, TILE)
    marked(indices, marks, size, limit, TILE)
    count = listed(marks, rows, rows, places, 1, TILE)
    for first in range(0, size, TILE):
        place = first + tl.arange(0, TILE)
        tl.store(rows + place, tl.full([TILE], -1, tl.int32), mask=(place >= count) & (place < size))
    return count


@triton.jit
def _stood(indices, table, rows, size, places, limit, TILE: tl.constexpr):
    """Writes each visible number at its first place."""
    filled(table, places, size, TILE)
    for first in range(0, size, TILE):
        place = first + tl.arange(0, TILE)
        number, seen = _numbers(indices, place, size, limit)
        tl.atomic_min(table + number, place, mask=seen)
    tl.debug_barrier()
    for first in range(0, size, TILE):
        place = first + tl.arange(0, TILE)
        number, seen = _numbers(indices, place, size, limit)
        least = tl.load(table + number, mask=seen, other=-1, cache_modifier=".cg")  # the first cache knows no atomics
        tl.store(rows + place, tl.where(seen & (least == place), number, -1).to(tl.int32), mask=place < size)


@triton.jit(do_not_specialize=["total", "queries", "keys", "size", "places"])
def _put_in_order(
    indices, rows, counts, table, total, queries, keys, size, places,
    BLOCK: tl.constexpr, CAUSAL: tl.constexpr, STANDS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Writes `rows`, and but for rows that stand `counts`."""
    table += tl.program_id(0).to(tl.int64) * (places if STANDS else tl.cdiv(places, 32))
    for row in range(tl.program_id(0), total, tl.num_programs(0)):
        limit = places
        if CAUSAL:
            position = keys - queries + row % queries
            limit = tl.where(position < 0, 0, position // BLOCK + 1)
        at = (tl.zeros([], tl.int64) + row) * size
        fine, count = _copied(indices + at, rows + at, size, limit, TILE)
        if fine == 0:
            if STANDS:
                _stood(indices + at, table, rows + at, size, places, limit, TILE)
            else:
                count = _in_order(indices + at, table, rows + at, size, places, limit, TILE)
        tl.store(counts + row, count)

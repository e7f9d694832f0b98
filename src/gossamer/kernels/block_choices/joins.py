"""What blocks gave to queries, and queries to parts of blocks, added up: each sum by one program, in one order."""

import triton
import triton.language as tl

from ..rows import load_tile, padded, store_tile
from .places import entries_of_item, lane_in, piece_of, rows_here

LOG2E = tl.constexpr(1.4426950408889634)

AT_ONCE = tl.constexpr(4)
"""Pieces of a row that are on their way together."""


@triton.jit
def join_pieces(
    out, lse, piece_out, piece_lse, counts, heads, axes, first_lane,
    CHOSEN: tl.constexpr, REPEATS: tl.constexpr, ROWS: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Joins to `out` and `lse` the pieces of each query."""
    here, batch, lane, query, repeat, head, exists = rows_here(heads, axes, first_lane, REPEATS, ROWS)
    count = tl.load(counts + lane.to(tl.int64) * axes.queries + query, mask=exists, other=0)
    most = tl.max(count, 0)
    if most == 0:
        return
    any_piece = count > 0
    at = (batch * heads.count + head).to(tl.int64) * axes.queries + query
    before = tl.load(lse + at, mask=any_piece, other=float("-inf")) * LOG2E
    rank = tl.arange(0, triton.next_power_of_2(CHOSEN))[None, :]
    pieces = piece_of(axes, here, rank, query[:, None], repeat[:, None], CHOSEN, REPEATS)
    parts = tl.load(piece_lse + pieces, mask=rank < count[:, None], other=float("-inf"))
    peak = tl.maximum(before, tl.max(parts, 1))
    finite = tl.where(peak == float("-inf"), 0.0, peak)
    shrink = tl.exp2(before - finite)
    total = shrink + tl.sum(tl.exp2(parts - finite[:, None]), 1)
    mean = load_tile(out, batch, head, query, any_piece, VALUE_WIDTH).to(tl.float32) * shrink[:, None]
    column = tl.arange(0, padded(VALUE_WIDTH))
    for start in tl.range(0, most, AT_ONCE):
        for step in tl.static_range(AT_ONCE):
            there = start + step < count
            piece = piece_of(axes, here, start + step, query, repeat, CHOSEN, REPEATS)
            share = tl.exp2(tl.load(piece_lse + piece, mask=there, other=float("-inf")) - finite)
            cells = piece_out + piece[:, None] * VALUE_WIDTH + column[None, :]
            mask = there[:, None] & (column < VALUE_WIDTH)[None, :]
            mean += tl.load(cells, mask=mask, other=0.0).to(tl.float32) * share[:, None]
    mean = mean / tl.where(total == 0.0, 1.0, total)[:, None]
    store_tile(out, batch, head, query, any_piece, mean, VALUE_WIDTH)
    tl.store(lse + at, (peak + tl.log2(total)) / LOG2E, mask=any_piece)


@triton.jit
def join_queries(
    dq, piece_dq, counts, heads, axes, first_lane, scale,
    CHOSEN: tl.constexpr, REPEATS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """Writes `dq`, the sum of each query's pieces, whose columns may be turned as registers hold them."""
    here, batch, lane, query, repeat, head, exists = rows_here(heads, axes, first_lane, REPEATS, ROWS)
    count = tl.load(counts + lane.to(tl.int64) * axes.queries + query, mask=exists, other=0)
    column = tl.arange(0, padded(WIDTH))
    total = tl.zeros((ROWS, padded(WIDTH)), tl.float32)
    for start in tl.range(0, tl.max(count, 0), AT_ONCE):
        for step in tl.static_range(AT_ONCE):
            piece = piece_of(axes, here, start + step, query, repeat, CHOSEN, REPEATS)
            cells = piece_dq + piece[:, None] * WIDTH + column[None, :]
            mask = (start + step < count)[:, None] & (column < WIDTH)[None, :]
            # Read once: it need not push out of the cache what others read again.
            total += tl.load(cells, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    if TURNED:
        total = tl.reshape(tl.permute(tl.reshape(total, (ROWS, WIDTH // 32, 4, 4, 2)), (0, 1, 3, 2, 4)), (ROWS, WIDTH))
    store_tile(dq, batch, head, query, exists, total * scale, WIDTH)


@triton.jit
def join_keys(
    dk, dv, part_dk, part_dv, rare, heads, axes, first_lane,
    SIZE: tl.constexpr, PART: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of blocks whose lists have several parts, or none."""
    PARTS: tl.constexpr = SIZE // KEYS
    blocks = axes.blocks * PARTS
    here, place = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    batch, key_head, lane = lane_in(heads, first_lane + here)
    at = lane * axes.blocks + place // PARTS
    left = tl.load(rare.totals + at)
    if (left > 0) & (entries_of_item(left, PART) == left):
        return
    inner = place % PARTS * KEYS + tl.arange(0, KEYS)
    column, value_column = tl.arange(0, padded(WIDTH)), tl.arange(0, padded(VALUE_WIDTH))
    dk_tile = tl.zeros((KEYS, padded(WIDTH)), tl.float32)
    dv_tile = tl.zeros((KEYS, padded(VALUE_WIDTH)), tl.float32)
    first = here.to(tl.int64) * rare.most + tl.load(rare.first_items + at)
    for part in tl.range(0, (left + PART // 2) // PART):
        number = ((first + part) * SIZE + inner)[:, None]
        dk_tile += tl.load(part_dk + number * padded(WIDTH) + column[None, :])
        dv_tile += tl.load(part_dv + number * padded(VALUE_WIDTH) + value_column[None, :])
    key = place // PARTS * SIZE + inner
    store_tile(dk, batch, key_head, key, key < axes.keys, dk_tile, WIDTH)
    store_tile(dv, batch, key_head, key, key < axes.keys, dv_tile, VALUE_WIDTH)

"""What blocks give to queries that chose them rarely: a softmax of its own for each, written out to be joined.

And what both ways read of the values.
"""

import triton
import triton.language as tl

from ..rows import load_tile, padded, store_tile
from .places import end_of_keys, item_of, lane_in, last_seen, piece_of


@triton.jit
def copy_seen(v, seen, rare, heads, axes, SIZE: tl.constexpr, VALUE_WIDTH: tl.constexpr):
    """Copies the values of a block, zeros for keys that nobody sees who chose it."""
    number, block = tl.program_id(0) // axes.blocks, tl.program_id(0) % axes.blocks
    batch, key_head, lane = lane_in(heads, number)
    key = block * SIZE + tl.arange(0, SIZE)
    tile = load_tile(v, batch, key_head, key, key < end_of_keys(rare, axes, lane, block), VALUE_WIDTH)
    store_tile(seen, batch, key_head, key, key < axes.keys, tile, VALUE_WIDTH)


@triton.jit
def forward_pieces(
    q, k, v, piece_out, piece_lse, rare, heads, axes, first_lane, unit,
    SIZE: tl.constexpr, CHOSEN: tl.constexpr, PART: tl.constexpr, REPEATS: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """For each entry of a block's list: the softmax over the block alone, and its log-sum-exp in units of log 2."""
    here, place = tl.program_id(0) // rare.most, tl.program_id(0) % rare.most
    batch, key_head, lane = lane_in(heads, first_lane + here)
    if tl.load(rare.items + lane * rare.most + place) >= axes.blocks:
        return
    block, first, count, _ = item_of(rare, axes, lane, place, PART)
    TOGETHER: tl.constexpr = triton.next_power_of_2(REPEATS)
    SLOTS: tl.constexpr = triton.next_power_of_2(CHOSEN)
    row = tl.arange(0, ROWS)
    repeat = row % TOGETHER
    key = block * SIZE + tl.arange(0, SIZE)
    seen = key < end_of_keys(rare, axes, lane, block)
    k_tile = load_tile(k, batch, key_head, key, seen, WIDTH)
    v_tile = load_tile(v, batch, key_head, key, seen, VALUE_WIDTH)
    entries = rare.entries + lane.to(tl.int64) * axes.queries * CHOSEN + first
    column = tl.arange(0, padded(VALUE_WIDTH))
    for start in tl.range(0, count, ROWS // TOGETHER, num_stages=NUM_STAGES):
        at = start + row // TOGETHER
        there = (at < count) & (repeat < REPEATS)
        entry = tl.load(entries + at, mask=at < count, other=0)
        query, rank = entry // SLOTS, entry % SLOTS
        q_tile = load_tile(q, batch, key_head * REPEATS + repeat, query, there, WIDTH)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * unit
        score = tl.where(key[None, :] <= last_seen(axes, query)[:, None], score, float("-inf"))
        peak = tl.max(score, 1)
        peak = tl.where(peak == float("-inf"), 0.0, peak)
        weight = tl.exp2(score - peak[:, None])
        total = tl.sum(weight, 1)
        mean = tl.dot(weight.to(v_tile.dtype), v_tile, input_precision="ieee")
        mean = mean / tl.where(total == 0.0, 1.0, total)[:, None]
        at = piece_of(axes, here, rank, query, repeat, CHOSEN, REPEATS)
        mask = there[:, None] & (column < VALUE_WIDTH)[None, :]
        cells = piece_out + at[:, None] * VALUE_WIDTH + column[None, :]
        tl.store(cells, mean.to(piece_out.dtype.element_ty), mask=mask)
        tl.store(piece_lse + at, peak + tl.log2(total), mask=there)

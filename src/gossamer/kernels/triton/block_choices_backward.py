"""The backward kernels over chosen blocks: each block meets the queries that chose it, in the order of its list.

A block's program sums its gradients of keys and values, and writes what it gives to each query; these are summed in the
order of the query's choices. Nothing is added up in memory by several: the same call gives the same bits.
"""

import triton
import triton.language as tl

from ..block_choices.places import end_of_keys, item_of, lane_in, last_seen, piece_of, queries_here
from ..rows import delta_at, load_tile, load_vector, padded, store_tile

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def prepare(
    out, grad_out, lse, grad_lse, peaks, deltas, queries, heads, ROWS: tl.constexpr, VALUE_WIDTH: tl.constexpr
):  # fmt: skip
    """`peaks`, the log-sum-exp in units of log 2, and `deltas`, the sums of grad_out · out less its gradient."""
    number, batch, head, query, exists = queries_here(heads, queries, ROWS)
    grad_tile = load_tile(grad_out, batch, head, query, exists, VALUE_WIDTH)
    delta = delta_at(grad_tile, out, grad_lse, batch, head, query, exists, VALUE_WIDTH)
    peak = load_vector(lse, batch, head, query, exists)
    peak = tl.where(peak == float("-inf"), float("inf"), peak) * LOG2E  # then no key has a weight
    at = number.to(tl.int64) * queries + query
    tl.store(peaks + at, peak, mask=exists)
    tl.store(deltas + at, delta, mask=exists)


@triton.jit
def backward_pieces(
    q, k, v, grad_out, peaks, deltas, piece_dq, dk, dv, part_dk, part_dv, rare, heads, axes, first_lane, unit, scale,
    SIZE: tl.constexpr, CHOSEN: tl.constexpr, PART: tl.constexpr, REPEATS: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """What the block of an item gives to each entry's query, and what the entries give to its keys and values."""
    here, place = tl.program_id(0) // rare.most, tl.program_id(0) % rare.most
    batch, key_head, lane = lane_in(heads, first_lane + here)
    if tl.load(rare.items + lane * rare.most + place) >= axes.blocks:
        return
    block, first, count, number = item_of(rare, axes, lane, place, PART)
    TOGETHER: tl.constexpr = triton.next_power_of_2(REPEATS)
    SLOTS: tl.constexpr = triton.next_power_of_2(CHOSEN)
    row = tl.arange(0, ROWS)
    repeat = row % TOGETHER
    head = key_head * REPEATS + repeat
    key = block * SIZE + tl.arange(0, SIZE)
    exists = key < axes.keys
    seen = key < end_of_keys(rare, axes, lane, block)
    k_tile = load_tile(k, batch, key_head, key, seen, WIDTH)
    v_tile = load_tile(v, batch, key_head, key, seen, VALUE_WIDTH)
    dk_tile = tl.zeros((SIZE, padded(WIDTH)), tl.float32)
    dv_tile = tl.zeros((SIZE, padded(VALUE_WIDTH)), tl.float32)
    entries = rare.entries + lane.to(tl.int64) * axes.queries * CHOSEN + first
    column = tl.arange(0, padded(WIDTH))
    for start in tl.range(0, count, ROWS // TOGETHER, num_stages=NUM_STAGES):
        at = start + row // TOGETHER
        there = (at < count) & (repeat < REPEATS)
        entry = tl.load(entries + at, mask=at < count, other=0)
        query, rank = entry // SLOTS, entry % SLOTS
        q_tile = load_tile(q, batch, head, query, there, WIDTH)
        grad_tile = load_tile(grad_out, batch, head, query, there, VALUE_WIDTH)
        at = (batch * heads.count + head).to(tl.int64) * axes.queries + query
        peak = tl.load(peaks + at, mask=there, other=0.0)
        delta = tl.load(deltas + at, mask=there, other=0.0)
        score = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee") * unit  # [keys, rows]
        weight = tl.exp2(score - peak[None, :])
        weight = tl.where(key[:, None] <= last_seen(axes, query)[None, :], weight, 0.0)
        dv_tile = tl.dot(weight.to(grad_tile.dtype), grad_tile, dv_tile, input_precision="ieee")
        grad = tl.dot(v_tile, tl.trans(grad_tile), input_precision="ieee")
        grad = (weight * (grad - delta[None, :])).to(q_tile.dtype)
        dk_tile = tl.dot(grad, q_tile, dk_tile, input_precision="ieee")
        dq_tile = tl.dot(tl.trans(grad), k_tile, input_precision="ieee")
        at = piece_of(axes, here, rank, query, repeat, CHOSEN, REPEATS)
        mask = there[:, None] & (column < WIDTH)[None, :]
        cells = piece_dq + at[:, None] * WIDTH + column[None, :]
        tl.store(cells, dq_tile.to(piece_dq.dtype.element_ty), mask=mask)
    dk_tile *= scale
    if number < 0:
        store_tile(dk, batch, key_head, key, exists, dk_tile, WIDTH)
        store_tile(dv, batch, key_head, key, exists, dv_tile, VALUE_WIDTH)
    else:
        inner = ((here.to(tl.int64) * rare.most + number) * SIZE + tl.arange(0, SIZE))[:, None]
        tl.store(part_dk + inner * padded(WIDTH) + column[None, :], dk_tile)
        value_column = tl.arange(0, padded(VALUE_WIDTH))
        tl.store(part_dv + inner * padded(VALUE_WIDTH) + value_column[None, :], dv_tile)

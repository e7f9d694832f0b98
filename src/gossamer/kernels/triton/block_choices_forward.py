"""The forward over chosen blocks: tiles of neighbouring queries over the blocks that they share.

Heads that share a key head share its choices: a row of a tile is a head of a query.
"""

import triton
import triton.language as tl

from ..block_choices.places import lane_in, last_seen
from ..rows import load_tile, padded, store_tile

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def forward_tiles(
    q, k, v, out, lse, sinks, shared, heads, axes, unit,
    SIZE: tl.constexpr, TILE: tl.constexpr, REPEATS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """Writes `out` and `lse` of every query over the blocks that its tile shares, of those that it chose."""
    ROWS: tl.constexpr = TILE * triton.next_power_of_2(REPEATS)
    number = tl.program_id(0)
    tile = shared.tiles - 1 - number % shared.tiles
    batch, key_head, lane = lane_in(heads, number // shared.tiles)
    row = tl.arange(0, ROWS)
    member, repeat = row % TILE, row // TILE
    query, head = tile * TILE + member, key_head * REPEATS + repeat
    exists = (query < axes.queries) & (repeat < REPEATS)
    last = last_seen(axes, query)
    all_see = tl.minimum(last_seen(axes, tile * TILE), axes.keys - 1)
    q_tile = load_tile(q, batch, head, query, exists, WIDTH)
    if sinks is None:
        peak, total = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    else:
        peak = tl.load(sinks + head, mask=exists, other=0.0).to(tl.float32) * LOG2E
        total = tl.full((ROWS,), 1.0, tl.float32)
    mean = tl.zeros((ROWS, padded(VALUE_WIDTH)), tl.float32)
    place = lane.to(tl.int64) * shared.tiles + tile
    start = place * shared.most
    seen = 0
    for step in tl.range(0, tl.load(shared.counts + place), num_stages=NUM_STAGES):
        block = tl.load(shared.blocks + start + step)
        word = tl.load(shared.members + start + step)
        key = block * SIZE + tl.arange(0, SIZE)
        k_tile = load_tile(k, batch, key_head, key, key < axes.keys, WIDTH)
        v_tile = load_tile(v, batch, key_head, key, key < axes.keys, VALUE_WIDTH)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
        chose = ((word >> member) & 1) != 0
        if block * SIZE + SIZE - 1 > all_see:  # else some query of the tile sees every key of the block
            score = tl.where(key[None, :] <= tl.where(chose, last, -1)[:, None], score, float("-inf"))
        seen |= word
        higher = tl.where(chose, tl.maximum(peak, tl.max(score, 1) * unit), peak)
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf would be NaN
        weight = tl.exp2(score * unit - tl.where(chose, finite, float("inf"))[:, None])
        shrink = tl.exp2(peak - finite)
        total = total * shrink + tl.sum(weight, 1)
        mean = tl.dot(weight.to(v_tile.dtype), v_tile, mean * shrink[:, None], input_precision="ieee")
        peak = higher
    saw = ((seen >> member) & 1) != 0  # else whatever stands in the query was multiplied with zeros
    mean = tl.where(saw[:, None], mean / tl.where(total == 0.0, 1.0, total)[:, None], 0.0)
    total = tl.where(saw, total, 0.0 if sinks is None else 1.0)
    store_tile(out, batch, head, query, exists, mean, VALUE_WIDTH)
    at = (batch * heads.count + head).to(tl.int64) * axes.queries + query
    tl.store(lse + at, (peak + tl.log2(total)) / LOG2E, mask=exists)

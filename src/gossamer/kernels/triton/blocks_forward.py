"""The forward kernel over a table of blocks: a tile of queries goes over its row's list in one online softmax."""

import triton
import triton.language as tl

from ..rows import load_tile, store_tile, store_vector
from .block_tiles import bounds_of, list_of, place_in, shown
from .forward import softmax_before
from .tiles import bent, capped, drawn_for, kept

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def blocks_forward(
    q, k, v, out, lse, sinks, table, axes, within, heads, scores, dropout,
    SIZE: tl.constexpr, CONTINUES: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes `out` and `lse`, or joins to what they hold the blocks that they have not met."""
    row, part, batch, head = place_in(table, heads, heads.repeats, SIZE // QUERIES)
    query = row * SIZE + part * QUERIES + tl.arange(0, QUERIES)
    exists = query < axes.queries
    own, other = bounds_of(within, batch, axes.offset, axes.queries), bounds_of(within, batch, 0, axes.keys)
    q_tile = load_tile(q, batch, head, query, exists, WIDTH)
    peak, total, mean = softmax_before(out, lse, sinks, batch, head, query, exists, CONTINUES, VALUE_WIDTH)
    drawn = query if dropout is None else drawn_for(dropout, batch, head, query)
    start, count = list_of(table, batch, head, row)
    PARTS: tl.constexpr = SIZE // KEYS
    for step in tl.range(0, count * PARTS):
        entry = start + step // PARTS
        begin = tl.load(table.blocks + entry) * SIZE + step % PARTS * KEYS
        key = begin + tl.arange(0, KEYS)
        there = key < axes.keys
        k_tile = load_tile(k, batch, head // heads.repeats, key, there, WIDTH)
        v_tile = load_tile(v, batch, head // heads.repeats, key, there, VALUE_WIDTH)
        score = capped(bent(tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee"), scores), scores)
        score = shown(score, table, entry, query, begin, own, other, within, SIZE, KEYS)
        higher = tl.maximum(peak, tl.max(score, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf would be NaN
        weight = tl.exp2(score - finite[:, None])
        shrink = tl.exp2(peak - finite)
        total = total * shrink + tl.sum(weight, 1)
        if dropout is not None:
            weight *= kept(dropout, drawn[:, None], key[None, :])
        mean = tl.dot(weight.to(v_tile.dtype), v_tile, mean * shrink[:, None], input_precision="ieee")
        peak = higher
    mean = mean / tl.where(total == 0.0, 1.0, total)[:, None]
    store_tile(out, batch, head, query, exists, mean, VALUE_WIDTH)
    store_vector(lse, batch, head, query, exists, (peak + tl.log2(total)) / LOG2E)

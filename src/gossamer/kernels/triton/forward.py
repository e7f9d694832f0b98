"""The forward kernel: a tile of queries goes over its runs of keys in one online softmax."""

import triton
import triton.language as tl

from ..rows import load_tile, load_vector, padded, store_tile, store_vector
from .tiles import bent, capped, drawn_for, inside, is_cut, kept, looked_up, met_by, place

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def forward(
    q, k, v, out, lse, sinks, queries, runs, heads, scores, dropout,
    RUNS: tl.constexpr, CONTINUES: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes `out` and `lse`, or joins to what they hold the runs of keys that they have not met."""
    tile, batch, head = place(queries.count, heads.count, heads.repeats, QUERIES)
    row = tile * QUERIES + tl.arange(0, QUERIES)
    exists = row < queries.count
    row = tl.minimum(row, queries.count - 1)
    query = looked_up(queries.index, row, exists)
    q_tile = load_tile(q, batch, head, query, exists, WIDTH)
    peak, total, mean = softmax_before(out, lse, sinks, batch, head, query, exists, CONTINUES, VALUE_WIDTH)
    drawn = query if dropout is None else drawn_for(dropout, batch, head, query)
    for number in tl.static_range(RUNS):
        start, length, bounds = met_by(runs[number], tile, batch, row, queries.count, QUERIES)
        begin = bounds[1] - tl.cdiv(bounds[1] - bounds[0], KEYS) * KEYS  # so that the tiles end where the keys do
        for first in tl.range(begin, bounds[1], KEYS):
            at = first + tl.arange(0, KEYS)
            met = at >= bounds[0]  # what no query of the tile sees may be NaN, and 0 · NaN is
            key = looked_up(runs[number].index, at, met)
            k_tile = load_tile(k, batch, head // heads.repeats, key, met, WIDTH)
            v_tile = load_tile(v, batch, head // heads.repeats, key, met, VALUE_WIDTH)
            product = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
            score = capped(bent(product, scores), scores)
            if is_cut(first, bounds, KEYS):
                score = tl.where(inside(at[None, :], start[:, None], length[:, None]), score, float("-inf"))
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


@triton.jit
def softmax_before(out, lse, sinks, batch, head, query, exists, CONTINUES: tl.constexpr, VALUE_WIDTH: tl.constexpr):
    """(peak, total, mean): the softmax before its first key, which may have met a sink or other keys already."""
    if CONTINUES:
        mean = load_tile(out, batch, head, query, exists, VALUE_WIDTH)
        peak = load_vector(lse, batch, head, query, exists) * LOG2E
    else:
        mean = tl.zeros((query.shape[0], padded(VALUE_WIDTH)), tl.float32)
        peak = tl.full(query.shape, float("-inf"), tl.float32)
        if sinks is not None:  # a sink is a key that was seen already and has no value
            peak = tl.load(sinks + head + tl.zeros_like(query)).to(tl.float32) * LOG2E
    return peak, tl.where(peak == float("-inf"), 0.0, 1.0), mean

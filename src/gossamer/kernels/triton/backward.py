"""The backward kernels: gradients of queries by tiles of queries, those of keys and values by tiles of keys.

Both make the probabilities again from the log-sum-exp. Each gradient has one owner, who sums it in one order: the
same call gives the same bits.
"""

import triton
import triton.language as tl

from ..rows import delta_at, load_tile, load_vector, padded, store_tile, store_vector
from .tiles import bent, capped, drawn_for, inside, is_cut, kept, looked_up, met_by, place

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def backward_queries(
    q, k, v, out, lse, grad_out, grad_lse, dq, deltas, queries, runs, heads, scores, dropout,
    RUNS: tl.constexpr, ADDS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes `dq`, or adds to it; and `deltas`, the sums of grad_out · out less the gradient of the log-sum-exp."""
    tile, batch, head = place(queries.count, heads.count, heads.repeats, QUERIES)
    row = tile * QUERIES + tl.arange(0, QUERIES)
    exists = row < queries.count
    row = tl.minimum(row, queries.count - 1)
    query = looked_up(queries.index, row, exists)
    q_tile = load_tile(q, batch, head, query, exists, WIDTH)
    grad_tile = load_tile(grad_out, batch, head, query, exists, VALUE_WIDTH)
    delta = delta_at(grad_tile, out, grad_lse, batch, head, query, exists, VALUE_WIDTH)
    store_vector(deltas, batch, head, query, exists, delta)
    peak = finite_lse(load_vector(lse, batch, head, query, exists))
    drawn = query if dropout is None else drawn_for(dropout, batch, head, query)
    total = tl.zeros((QUERIES, padded(WIDTH)), tl.float32)
    sees = row < 0
    for number in tl.static_range(RUNS):
        start, length, bounds = met_by(runs[number], tile, batch, row, queries.count, QUERIES)
        begin = bounds[1] - tl.cdiv(bounds[1] - bounds[0], KEYS) * KEYS
        sees |= length > 0
        for first in tl.range(begin, bounds[1], KEYS):
            at = first + tl.arange(0, KEYS)
            met = at >= bounds[0]
            key = looked_up(runs[number].index, at, met)
            k_tile = load_tile(k, batch, head // heads.repeats, key, met, WIDTH)
            v_tile = load_tile(v, batch, head // heads.repeats, key, met, VALUE_WIDTH)
            turned = bent(tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee"), scores)
            score = capped(turned, scores)
            if is_cut(first, bounds, KEYS):
                score = tl.where(inside(at[None, :], start[:, None], length[:, None]), score, float("-inf"))
            weight = tl.exp2(score - peak[:, None])
            grad = tl.dot(grad_tile, tl.trans(v_tile), input_precision="ieee")
            if dropout is not None:
                grad *= kept(dropout, drawn[:, None], key[None, :])
            grad = of_product(weight * (grad - delta[:, None]), turned, scores)
            total = tl.dot(grad.to(k_tile.dtype), k_tile, total, input_precision="ieee")
    total = tl.where(sees[:, None], total * scores.scale, 0.0)  # whatever a query holds that sees nothing
    if ADDS:
        total += load_tile(dq, batch, head, query, exists, WIDTH)
    store_tile(dq, batch, head, query, exists, total, WIDTH)


@triton.jit(do_not_specialize=["splits"])
def backward_keys(
    q, k, v, lse, grad_out, deltas, dk, dv, keys, run, heads, scores, dropout, splits,
    ADDS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes `dk` and `dv`, or adds to them: the sums over every query that sees the key, in all of its query heads.

    Of several splits, each sums a part of the queries into a batch of its own.
    """
    tile, batch, head = place(keys.count, heads.count // heads.repeats, 1, KEYS)
    row = tile * KEYS + tl.arange(0, KEYS)
    exists = row < keys.count
    row = tl.minimum(row, keys.count - 1)
    key = looked_up(keys.index, row, exists)
    k_tile = load_tile(k, batch, head, key, exists, WIDTH)
    v_tile = load_tile(v, batch, head, key, exists, VALUE_WIDTH)
    dk_tile = tl.zeros((KEYS, padded(WIDTH)), tl.float32)
    dv_tile = tl.zeros((KEYS, padded(VALUE_WIDTH)), tl.float32)
    start, length, bounds = met_by(run, tile, batch, row, keys.count, KEYS)
    tiles = tl.cdiv(tl.cdiv(bounds[1] - bounds[0], QUERIES), splits)
    begin = bounds[0] + tl.program_id(1) * tiles * QUERIES
    tiles = tl.minimum(tiles, tl.maximum(tl.cdiv(bounds[1] - begin, QUERIES), 0))
    for step in tl.range(0, tiles * heads.repeats):
        query_head = head * heads.repeats + step // tiles
        first = begin + step % tiles * QUERIES
        at = first + tl.arange(0, QUERIES)
        query = looked_up(run.index, at, at < bounds[1])
        q_tile = load_tile(q, batch, query_head, query, at < bounds[1], WIDTH)
        grad_tile = load_tile(grad_out, batch, query_head, query, at < bounds[1], VALUE_WIDTH)
        peak = finite_lse(load_vector(lse, batch, query_head, query, at < bounds[1]))
        delta = load_vector(deltas, batch, query_head, query, at < bounds[1])
        turned = bent(tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee"), scores)  # [keys, queries]
        score = capped(turned, scores)
        if is_cut(first, bounds, QUERIES):
            score = tl.where(inside(at[None, :], start[:, None], length[:, None]), score, float("-inf"))
        weight = tl.exp2(score - peak[None, :])
        grad = tl.dot(v_tile, tl.trans(grad_tile), input_precision="ieee")
        dropped = weight
        if dropout is not None:
            drawn = drawn_for(dropout, batch, query_head, query)
            factor = kept(dropout, drawn[None, :], key[:, None])
            dropped = weight * factor
            grad *= factor
        dv_tile = tl.dot(dropped.to(grad_tile.dtype), grad_tile, dv_tile, input_precision="ieee")
        grad = of_product(weight * (grad - delta[None, :]), turned, scores)
        dk_tile = tl.dot(grad.to(q_tile.dtype), q_tile, dk_tile, input_precision="ieee")
    seen = (length > 0)[:, None]
    dk_tile, dv_tile = tl.where(seen, dk_tile * scores.scale, 0.0), tl.where(seen, dv_tile, 0.0)
    batch += tl.program_id(1) * heads.batch
    if ADDS:
        dk_tile += load_tile(dk, batch, head, row, exists, WIDTH)
        dv_tile += load_tile(dv, batch, head, row, exists, VALUE_WIDTH)
    store_tile(dk, batch, head, row, exists, dk_tile, WIDTH)
    store_tile(dv, batch, head, row, exists, dv_tile, VALUE_WIDTH)


@triton.jit
def finite_lse(lse):
    """In units of log 2; zero for a query that sees nothing, whose weights are then masked and not NaN."""
    return tl.where(lse == float("-inf"), 0.0, lse) * LOG2E


@triton.jit
def of_product(grad, turned, scores):
    """The gradient of the product from that of the score, but for the scale."""
    if scores.cap is None:
        return grad
    else:
        return grad * (1.0 - turned * turned)

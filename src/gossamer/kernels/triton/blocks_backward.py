"""The backward kernels over tables of blocks: gradients of queries from their side, of keys and values from theirs.

Both make the probabilities again from the log-sum-exp. Each gradient has one owner, who sums it in one order: the
same call gives the same bits.
"""

import triton
import triton.language as tl

from ..rows import delta_at, load_tile, load_vector, padded, store_tile, store_vector
from .backward import finite_lse, of_product
from .block_tiles import bounds_of, list_of, place_in, shown
from .tiles import bent, capped, drawn_for, kept


@triton.jit
def blocks_backward_queries(
    q, k, v, out, lse, grad_out, grad_lse, dq, deltas, table, axes, within, heads, scores, dropout,
    SIZE: tl.constexpr, ADDS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes `dq`, or adds to it; and `deltas`, the sums of grad_out · out less the gradient of the log-sum-exp."""
    row, part, batch, head = place_in(table, heads, heads.repeats, SIZE // QUERIES)
    query = row * SIZE + part * QUERIES + tl.arange(0, QUERIES)
    exists = query < axes.queries
    own, other = bounds_of(within, batch, axes.offset, axes.queries), bounds_of(within, batch, 0, axes.keys)
    q_tile = load_tile(q, batch, head, query, exists, WIDTH)
    grad_tile = load_tile(grad_out, batch, head, query, exists, VALUE_WIDTH)
    delta = delta_at(grad_tile, out, grad_lse, batch, head, query, exists, VALUE_WIDTH)
    store_vector(deltas, batch, head, query, exists, delta)
    peak = finite_lse(load_vector(lse, batch, head, query, exists))
    drawn = query if dropout is None else drawn_for(dropout, batch, head, query)
    total = tl.zeros((QUERIES, padded(WIDTH)), tl.float32)
    start, count = list_of(table, batch, head, row)
    PARTS: tl.constexpr = SIZE // KEYS
    for step in tl.range(0, count * PARTS):
        entry = start + step // PARTS
        begin = tl.load(table.blocks + entry) * SIZE + step % PARTS * KEYS
        key = begin + tl.arange(0, KEYS)
        there = key < axes.keys
        k_tile = load_tile(k, batch, head // heads.repeats, key, there, WIDTH)
        v_tile = load_tile(v, batch, head // heads.repeats, key, there, VALUE_WIDTH)
        turned = bent(tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee"), scores)
        score = capped(turned, scores)
        score = shown(score, table, entry, query, begin, own, other, within, SIZE, KEYS)
        weight = tl.exp2(score - peak[:, None])
        grad = tl.dot(grad_tile, tl.trans(v_tile), input_precision="ieee")
        if dropout is not None:
            grad *= kept(dropout, drawn[:, None], key[None, :])
        grad = of_product(weight * (grad - delta[:, None]), turned, scores)
        total = tl.dot(grad.to(k_tile.dtype), k_tile, total, input_precision="ieee")
    total *= scores.scale
    if ADDS:
        total += load_tile(dq, batch, head, query, exists, WIDTH)
    store_tile(dq, batch, head, query, exists, total, WIDTH)


@triton.jit
def blocks_backward_keys(
    q, k, v, lse, grad_out, deltas, dk, dv, table, axes, within, heads, scores, dropout,
    SIZE: tl.constexpr, ADDS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes `dk` and `dv`, or adds to them: the sums over every block that sees the key, in all of its query heads."""
    row, part, batch, first_head = place_in(table, heads, 1, SIZE // KEYS)
    head = first_head // heads.repeats
    key = row * SIZE + part * KEYS + tl.arange(0, KEYS)
    exists = key < axes.keys
    own, other = bounds_of(within, batch, 0, axes.keys), bounds_of(within, batch, axes.offset, axes.queries)
    k_tile = load_tile(k, batch, head, key, exists, WIDTH)
    v_tile = load_tile(v, batch, head, key, exists, VALUE_WIDTH)
    dk_tile = tl.zeros((KEYS, padded(WIDTH)), tl.float32)
    dv_tile = tl.zeros((KEYS, padded(VALUE_WIDTH)), tl.float32)
    PARTS: tl.constexpr = SIZE // QUERIES
    for repeat in tl.range(0, heads.repeats):
        query_head = first_head + repeat
        start, count = list_of(table, batch, query_head, row)
        for step in tl.range(0, count * PARTS):
            entry = start + step // PARTS
            begin = tl.load(table.blocks + entry) * SIZE + step % PARTS * QUERIES
            query = begin + tl.arange(0, QUERIES)
            there = query < axes.queries
            q_tile = load_tile(q, batch, query_head, query, there, WIDTH)
            grad_tile = load_tile(grad_out, batch, query_head, query, there, VALUE_WIDTH)
            peak = finite_lse(load_vector(lse, batch, query_head, query, there))
            delta = load_vector(deltas, batch, query_head, query, there)
            turned = bent(tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee"), scores)  # [keys, queries]
            score = capped(turned, scores)
            score = shown(score, table, entry, key, begin, own, other, within, SIZE, QUERIES)
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
    dk_tile *= scores.scale
    if ADDS:
        dk_tile += load_tile(dk, batch, head, key, exists, WIDTH)
        dv_tile += load_tile(dv, batch, head, key, exists, VALUE_WIDTH)
    store_tile(dk, batch, head, key, exists, dk_tile, WIDTH)
    store_tile(dv, batch, head, key, exists, dv_tile, VALUE_WIDTH)

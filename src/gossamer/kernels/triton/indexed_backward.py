"""The backward kernels of indexed attention: gradients of queries, and those of keys and values.

All make the probabilities again from the log-sum-exp. A query's gradient has one owner. What comes to a key from one
query has one owner too, and is written where the inverse lists find it: a key's owner then sums its list in the order
of the queries. Of larger blocks, the owner of a block's keys makes what comes from the queries of its list itself.
"""

import triton
import triton.language as tl

from .backward import finite_lse, of_product
from .indexed_tiles import (
    across,
    add_tail,
    choice_of,
    heads_of,
    keys_at,
    leading,
    load_rows,
    query_of,
    row_of,
    run_of,
    store_rows,
    zeros_tail,
)
from .tiles import bent, capped, drawn_for, kept


@triton.jit
def indexed_backward_queries(
    q, k, v, out, lse, grad_out, grad_lse, dq, deltas, chosen, heads, axes, scores, dropout,
    SHARED: tl.constexpr, BLOCK: tl.constexpr, CAUSAL: tl.constexpr, PARTS: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes `dq`; and `deltas`, the sums of grad_out · out less the gradient of the log-sum-exp."""
    part, query, batch, group, choice = query_of(tl.program_id(0), chosen, heads, axes, PARTS)
    head, exists = heads_of(part, group, heads, ROWS)
    position = query + axes.offset
    q_head, q_tail = load_rows(q, batch, head, query, exists, WIDTH)
    g_head, g_tail = load_rows(grad_out, batch, head, query, exists, VALUE_WIDTH)
    o_head, o_tail = load_rows(out, batch, head, query, exists, VALUE_WIDTH)
    delta = tl.sum(g_head.to(tl.float32) * o_head.to(tl.float32), 1)
    delta += tl.sum(g_tail.to(tl.float32) * o_tail.to(tl.float32), 1)
    if grad_lse is not None:
        delta -= tl.load(grad_lse.pointer + row_of(grad_lse, batch, head, query), mask=exists, other=0.0)
    tl.store(deltas.pointer + row_of(deltas, batch, head, query), delta, mask=exists)
    peak = finite_lse(tl.load(lse.pointer + row_of(lse, batch, head, query), mask=exists, other=0.0))
    drawn = head if dropout is None else drawn_for(dropout, batch, head, query)
    total, total_tail = tl.zeros((ROWS, leading(WIDTH)), tl.float32), zeros_tail(ROWS, WIDTH)
    count = tl.load(chosen.counts + choice) * BLOCK
    for first in tl.range(0, count, KEYS):
        key, there = keys_at(first + tl.arange(0, KEYS), count, chosen, choice, axes, position, BLOCK, CAUSAL)
        k_head, k_tail = load_rows(k, batch, group, key, there, WIDTH)
        if SHARED:
            v_head, v_tail = k_head, k_tail
        else:
            v_head, v_tail = load_rows(v, batch, group, key, there, VALUE_WIDTH)
        turned = bent(across(q_head, q_tail, k_head, k_tail, WIDTH), scores)
        weight = tl.exp2(tl.where(there[None, :], capped(turned, scores), float("-inf")) - peak[:, None])
        grad = across(g_head, g_tail, v_head, v_tail, VALUE_WIDTH)
        if dropout is not None:
            grad *= kept(dropout, drawn[:, None], key[None, :])
        grad = of_product(weight * (grad - delta[:, None]), turned, scores).to(k_head.dtype)
        total = tl.dot(grad, k_head, total, input_precision="ieee")
        total_tail = add_tail(grad, k_tail, total_tail, WIDTH)
    seen = count > 0  # whatever a query holds that sees nothing
    store_rows(
        dq,
        batch,
        head,
        query,
        exists,
        tl.where(seen, total * scores.scale, 0.0),
        tl.where(seen, total_tail * scores.scale, 0.0),
        WIDTH,
    )


@triton.jit
def pairs_of(
    q_head, q_tail, k_head, k_tail, g_head, g_tail, v_head, v_tail, peak, delta, drawn, key, seen, scores, dropout,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """(weights, gradients of products but for the scale), [keys, heads] both, in float32."""
    turned = bent(across(k_head, k_tail, q_head, q_tail, WIDTH), scores)
    weight = tl.exp2(tl.where(seen, capped(turned, scores) - peak[None, :], float("-inf")))
    grad = across(v_head, v_tail, g_head, g_tail, VALUE_WIDTH)
    dropped = weight
    if dropout is not None:
        factor = kept(dropout, drawn[None, :], key[:, None])
        dropped = weight * factor
        grad *= factor
    grad = of_product(weight * (grad - delta[None, :]), turned, scores)
    return dropped, tl.where(seen, grad, 0.0)  # whatever a key holds that nobody sees


@triton.jit
def summed(
    weight, grad, q_head, q_tail, g_head, g_tail, dk, dk_tail, dv, dv_tail, scores,
    SHARED: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Adds to the gradients of keys and values, of which the latter are the keys' own where `SHARED`."""
    grad, weight = (grad * scores.scale).to(q_head.dtype), weight.to(g_head.dtype)
    dk = tl.dot(grad, q_head, dk, input_precision="ieee")
    dk_tail = add_tail(grad, q_tail, dk_tail, WIDTH)
    if SHARED:
        dk = tl.dot(weight, g_head, dk, input_precision="ieee")
    else:
        dv = tl.dot(weight, g_head, dv, input_precision="ieee")
        dv_tail = add_tail(weight, g_tail, dv_tail, VALUE_WIDTH)
    return dk, dk_tail, dv, dv_tail


@triton.jit(do_not_specialize=["first", "count", "lane"])
def indexed_backward_rows(
    q, k, v, lse, grad_out, deltas, of_keys, of_values, chosen, heads, axes, scores, dropout, first, count, lane,
    SHARED: tl.constexpr, BLOCK: tl.constexpr, CAUSAL: tl.constexpr, PARTS: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes what comes to each chosen key from its query, in `of_keys` and `of_values` [lanes, queries · n, width].

    Of queries `first … first + count - 1`, from the key head `lane` on.
    """
    number, tiles = tl.program_id(0), tl.cdiv(chosen.size, KEYS)
    start = number % tiles * KEYS
    place = number // tiles % count
    own = number // tiles // count
    lane += own
    batch, group, query = lane // heads.groups, lane % heads.groups, first + place
    choice = choice_of(chosen, heads, axes, lane, query)
    held = tl.load(chosen.counts + choice)
    if start < held:
        at = start + tl.arange(0, KEYS)
        key, there = keys_at(at, held, chosen, choice, axes, query + axes.offset, BLOCK, CAUSAL)
        k_head, k_tail = load_rows(k, batch, group, key, there, WIDTH)
        if SHARED:
            v_head, v_tail = k_head, k_tail
        else:
            v_head, v_tail = load_rows(v, batch, group, key, there, VALUE_WIDTH)
        dk, dk_tail = tl.zeros((KEYS, leading(WIDTH)), tl.float32), zeros_tail(KEYS, WIDTH)
        dv, dv_tail = tl.zeros((KEYS, leading(VALUE_WIDTH)), tl.float32), zeros_tail(KEYS, VALUE_WIDTH)
        for part in tl.range(0, PARTS):
            head, exists = heads_of(part, group, heads, ROWS)
            q_head, q_tail = load_rows(q, batch, head, query, exists, WIDTH)
            g_head, g_tail = load_rows(grad_out, batch, head, query, exists, VALUE_WIDTH)
            peak = finite_lse(tl.load(lse.pointer + row_of(lse, batch, head, query), mask=exists, other=0.0))
            delta = tl.load(deltas.pointer + row_of(deltas, batch, head, query), mask=exists, other=0.0)
            drawn = head if dropout is None else drawn_for(dropout, batch, head, query)
            weight, grad = pairs_of(
                q_head, q_tail, k_head, k_tail, g_head, g_tail, v_head, v_tail, peak, delta, drawn, key,
                there[:, None] & exists[None, :], scores, dropout, WIDTH, VALUE_WIDTH,
            )  # fmt: skip
            dk, dk_tail, dv, dv_tail = summed(
                weight, grad, q_head, q_tail, g_head, g_tail, dk, dk_tail, dv, dv_tail, scores, SHARED, WIDTH,
                VALUE_WIDTH,
            )  # fmt: skip
        entry = place.to(tl.int64) * chosen.size + at
        store_rows(of_keys, own * 0, own, entry, there, dk, dk_tail, WIDTH)
        if not SHARED:
            store_rows(of_values, own * 0, own, entry, there, dv, dv_tail, VALUE_WIDTH)


@triton.jit(do_not_specialize=["lane"])
def indexed_sum_rows(
    parts, total, lists, together, groups, keys, lane,
    ADDS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Writes to `total` the sum of each key's list of rows of `parts`, or adds it.

    From the key head `lane` on, of `groups` in a sequence; those of a run are `together`.
    """
    key, own = tl.program_id(0) % keys, tl.program_id(0) // keys
    lane += own
    run = (lane // together).to(tl.int64)
    begin, end = list_of(lists, run, key, keys)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    within = column < WIDTH
    found = tl.zeros((STEP, COLUMNS), tl.float32)
    for first in tl.range(begin, end, STEP):
        at = first + tl.arange(0, STEP)
        entry = tl.load(lists.entries + run * lists.room + at, mask=at < end, other=0).to(tl.int64)
        cells = parts.pointer + (own.to(tl.int64) * parts.head + entry * parts.row)[:, None] * parts.unit
        row = tl.load(cells + column[None, :], mask=(at < end)[:, None] & within[None, :], other=0.0)
        found += row.to(tl.float32)
    cells = total.pointer + row_of(total, lane // groups, lane % groups, key) * total.unit
    cells += column * total.column
    found = tl.sum(found, 0)
    if ADDS:
        found += tl.load(cells, mask=within, other=0.0)
    tl.store(cells, found.to(total.pointer.dtype.element_ty), mask=within)


@triton.jit
def list_of(lists, run, number, count):
    """Where the list of a number, of so many, begins and ends."""
    starts = lists.starts + run * (count + 1) + number
    return tl.load(starts), tl.load(starts + 1)


@triton.jit(do_not_specialize=["splits"])
def indexed_backward_blocks(
    q, k, v, lse, grad_out, deltas, dk, dv, lists, chosen, heads, axes, scores, dropout, sequences, splits,
    SHARED: tl.constexpr, BLOCK: tl.constexpr, CAUSAL: tl.constexpr, HEADS: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes `dk` and `dv`: of a block's keys, the sums over the queries that chose it, in all of its query heads.

    Of several splits, each sums a part of the block's list into a batch of its own.
    """
    TILES: tl.constexpr = (BLOCK + KEYS - 1) // KEYS
    TOGETHER: tl.constexpr = ROWS // HEADS
    number, blocks = tl.program_id(0), tl.cdiv(axes.keys, BLOCK)
    block, lane = number // TILES % blocks, number // TILES // blocks
    batch, group = lane // heads.groups, lane % heads.groups
    inside = number % TILES * KEYS + tl.arange(0, KEYS)
    key = block * BLOCK + inside
    real = (inside < BLOCK) & (key < axes.keys)
    k_head, k_tail = load_rows(k, batch, group, key, real, WIDTH)
    if SHARED:
        v_head, v_tail = k_head, k_tail
    else:
        v_head, v_tail = load_rows(v, batch, group, key, real, VALUE_WIDTH)
    k_grad, k_grad_tail = tl.zeros((KEYS, leading(WIDTH)), tl.float32), zeros_tail(KEYS, WIDTH)
    v_grad, v_grad_tail = tl.zeros((KEYS, leading(VALUE_WIDTH)), tl.float32), zeros_tail(KEYS, VALUE_WIDTH)
    run = run_of(chosen, heads, lane)
    begin, end = list_of(lists, run, block, blocks)
    share = tl.cdiv(end - begin, splits)
    begin += tl.program_id(1) * share
    end = tl.minimum(end, begin + share)
    parts = tl.cdiv(heads.repeats, HEADS)
    for step in tl.range(0, tl.cdiv(tl.maximum(end - begin, 0), TOGETHER) * parts):
        at = begin + step // parts * TOGETHER + tl.arange(0, ROWS) // HEADS
        entry = tl.load(lists.entries + run * lists.room + at, mask=at < end, other=0)
        query = entry // chosen.size
        place = step % parts * HEADS + tl.arange(0, ROWS) % HEADS
        exists = (at < end) & (place < heads.repeats)
        head = group * heads.repeats + tl.minimum(place, heads.repeats - 1)
        q_head, q_tail = load_rows(q, batch, head, query, exists, WIDTH)
        g_head, g_tail = load_rows(grad_out, batch, head, query, exists, VALUE_WIDTH)
        peak = finite_lse(tl.load(lse.pointer + row_of(lse, batch, head, query), mask=exists, other=0.0))
        delta = tl.load(deltas.pointer + row_of(deltas, batch, head, query), mask=exists, other=0.0)
        drawn = head if dropout is None else drawn_for(dropout, batch, head, query)
        seen = real[:, None] & exists[None, :]
        if CAUSAL:
            seen = seen & (key[:, None] <= (query + axes.offset)[None, :])
        weight, grad = pairs_of(
            q_head, q_tail, k_head, k_tail, g_head, g_tail, v_head, v_tail, peak, delta, drawn, key, seen, scores,
            dropout, WIDTH, VALUE_WIDTH,
        )  # fmt: skip
        k_grad, k_grad_tail, v_grad, v_grad_tail = summed(
            weight, grad, q_head, q_tail, g_head, g_tail, k_grad, k_grad_tail, v_grad, v_grad_tail, scores, SHARED,
            WIDTH, VALUE_WIDTH,
        )  # fmt: skip
    batch += tl.program_id(1) * sequences
    store_rows(dk, batch, group, key, real, k_grad, k_grad_tail, WIDTH)
    if not SHARED:
        store_rows(dv, batch, group, key, real, v_grad, v_grad_tail, VALUE_WIDTH)

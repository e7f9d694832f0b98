"""The forward kernel of indexed attention: the heads that share a query's keys meet them, a tile at a time."""

import triton
import triton.language as tl

from .indexed_tiles import (
    LOG2E,
    across,
    add_tail,
    heads_of,
    keys_at,
    leading,
    load_rows,
    query_of,
    row_of,
    store_rows,
    zeros_tail,
)
from .tiles import bent, capped, drawn_for, kept


@triton.jit
def indexed_forward(
    q, k, v, out, lse, sinks, chosen, heads, axes, scores, dropout,
    SHARED: tl.constexpr, BLOCK: tl.constexpr, CAUSAL: tl.constexpr, PARTS: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes `out` and `lse`. Where `SHARED`, the leading columns of keys are their values."""
    part, query, batch, group, choice = query_of(tl.program_id(0), chosen, heads, axes, PARTS)
    head, exists = heads_of(part, group, heads, ROWS)
    position = query + axes.offset
    q_head, q_tail = load_rows(q, batch, head, query, exists, WIDTH)
    if sinks is None:
        peak = tl.full((ROWS,), float("-inf"), tl.float32)
    else:
        peak = tl.load(sinks + head, mask=exists, other=0.0).to(tl.float32) * LOG2E
    total = tl.where(peak == float("-inf"), 0.0, 1.0)
    mean = tl.zeros((ROWS, leading(VALUE_WIDTH)), tl.float32)
    mean_tail = zeros_tail(ROWS, VALUE_WIDTH)
    drawn = head if dropout is None else drawn_for(dropout, batch, head, query)
    count = tl.load(chosen.counts + choice) * BLOCK
    for first in tl.range(0, count, KEYS):
        key, there = keys_at(first + tl.arange(0, KEYS), count, chosen, choice, axes, position, BLOCK, CAUSAL)
        k_head, k_tail = load_rows(k, batch, group, key, there, WIDTH)
        if SHARED:
            v_head, v_tail = k_head, k_tail
        else:
            v_head, v_tail = load_rows(v, batch, group, key, there, VALUE_WIDTH)
        score = capped(bent(across(q_head, q_tail, k_head, k_tail, WIDTH), scores), scores)
        score = tl.where(there[None, :], score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf would be NaN
        weight = tl.exp2(score - finite[:, None])
        shrink = tl.exp2(peak - finite)
        total = total * shrink + tl.sum(weight, 1)
        if dropout is not None:
            weight *= kept(dropout, drawn[:, None], key[None, :])
        weight = weight.to(v_head.dtype)
        mean = tl.dot(weight, v_head, mean * shrink[:, None], input_precision="ieee")
        mean_tail = add_tail(weight, v_tail, mean_tail * shrink[:, None], VALUE_WIDTH)
        peak = higher
    share = 1.0 / tl.where(total == 0.0, 1.0, total)[:, None]
    store_rows(out, batch, head, query, exists, mean * share, mean_tail * share, VALUE_WIDTH)
    tl.store(lse.pointer + row_of(lse, batch, head, query), (peak + tl.log2(total)) / LOG2E, mask=exists)

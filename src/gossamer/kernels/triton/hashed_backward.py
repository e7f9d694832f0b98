"""The backward kernels of hashed attention: gradients of tokens as queries, then of tokens as keys and values.

Both make the probabilities of all rounds together again, from the joined log-sum-exp. In one round a token has one
place, so that each sum has one owner; rounds follow one another, so that the same call gives the same bits.
"""

import triton
import triton.language as tl

from ..rows import delta_at, load_tile, load_vector, padded, store_tile, store_vector
from .hashed_tiles import LOG2E, beside, existing, judged, located, tokens


@triton.jit(do_not_specialize=["turn"])
def backward_queries(
    x, v, units, out, lse, grad_out, grad_lse, dx, deltas, sorted, turn, heads, unit, scale,
    FIRST: tl.constexpr, CAUSAL: tl.constexpr, EDGE: tl.constexpr, ROUNDS: tl.constexpr,
    SIZE: tl.constexpr, BEFORE: tl.constexpr, MET: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes `dx`, or adds to it, what comes to tokens as queries; and in the first round `deltas`, the sums of
    grad_out · out less the gradient of the log-sum-exp."""
    chunk, offset, batch, head = located(sorted, heads, SIZE, QUERIES)
    lane = batch * heads + head
    query, place, exists = tokens(sorted, lane, turn, chunk, offset, SIZE)
    known = existing(sorted, batch)
    seeing = exists & (place < known)
    q_tile = load_tile(x, batch, head, query, exists, WIDTH)
    grad_tile = load_tile(grad_out, batch, head, query, exists, VALUE_WIDTH)
    peak = _finite(load_vector(lse, batch, head, query, exists))
    if FIRST:
        delta = delta_at(grad_tile, out, grad_lse, batch, head, query, exists, VALUE_WIDTH)
        store_vector(deltas, batch, head, query, exists, delta)
    else:
        delta = load_vector(deltas, batch, head, query, exists)
    total = tl.zeros((QUERIES, padded(WIDTH)), tl.float32)
    parts: tl.constexpr = (SIZE + KEYS - 1) // KEYS
    for step in tl.range(0, MET * parts):
        theirs, near, there = beside(sorted, turn, chunk + step // parts - BEFORE, EDGE)
        key, spot, real = tokens(sorted, lane, theirs, near, step % parts * KEYS + tl.arange(0, KEYS), SIZE)
        real = real & (spot < known) & there
        k_tile = load_tile(x, batch, head, key, real, WIDTH)
        v_tile = load_tile(v, batch, head, key, real, VALUE_WIDTH)
        factor = load_vector(units, batch, head, key, real)
        product = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * (factor * unit)[None, :]
        visible = seeing[:, None] & real[None, :]
        score = judged(
            product, sorted, lane, turn, theirs, query[:, None], key[None, :], spot[None, :], visible, CAUSAL, ROUNDS
        )
        weight = tl.exp2(score - peak[:, None])
        grad = weight * (tl.dot(grad_tile, tl.trans(v_tile), input_precision="ieee") - delta[:, None])
        grad = tl.where(query[:, None] == key[None, :], 0.0, grad * factor[None, :])  # with itself: no product
        total = tl.dot(grad.to(k_tile.dtype), k_tile, total, input_precision="ieee")
    total *= scale
    if not FIRST:
        total += load_tile(dx, batch, head, query, exists, WIDTH)
    store_tile(dx, batch, head, query, exists, total, WIDTH)


@triton.jit(do_not_specialize=["turn"])
def backward_keys(
    x, v, units, lse, grad_out, deltas, of_queries, held, held_values, dx, dv, sorted, turn, heads, unit, scale,
    FIRST: tl.constexpr, LAST: tl.constexpr, CAUSAL: tl.constexpr, EDGE: tl.constexpr, ROUNDS: tl.constexpr,
    SIZE: tl.constexpr, BEFORE: tl.constexpr, MET: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Adds up, round by round, what comes to tokens as keys and values; the last round makes of it `dx` and `dv`."""
    chunk, offset, batch, head = located(sorted, heads, SIZE, KEYS)
    lane = batch * heads + head
    key, spot, exists = tokens(sorted, lane, turn, chunk, offset, SIZE)
    known = existing(sorted, batch)
    real = exists & (spot < known)
    k_tile = load_tile(x, batch, head, key, exists, WIDTH)
    v_tile = load_tile(v, batch, head, key, exists, VALUE_WIDTH)
    factor = load_vector(units, batch, head, key, exists)
    dk = tl.zeros((KEYS, padded(WIDTH)), tl.float32)
    value_grad = tl.zeros((KEYS, padded(VALUE_WIDTH)), tl.float32)
    parts: tl.constexpr = (SIZE + QUERIES - 1) // QUERIES
    for step in tl.range(0, MET * parts):
        theirs, near, there = beside(sorted, turn, chunk + BEFORE - step // parts, EDGE)
        query, place, seeing = tokens(sorted, lane, theirs, near, step % parts * QUERIES + tl.arange(0, QUERIES), SIZE)
        seeing = seeing & (place < known) & there
        q_tile = load_tile(x, batch, head, query, seeing, WIDTH)
        grad_tile = load_tile(grad_out, batch, head, query, seeing, VALUE_WIDTH)
        peak = _finite(load_vector(lse, batch, head, query, seeing))
        delta = load_vector(deltas, batch, head, query, seeing)
        product = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee") * (factor * unit)[:, None]
        visible = real[:, None] & seeing[None, :]
        score = judged(
            product, sorted, lane, turn, theirs, query[None, :], key[:, None], spot[:, None], visible, CAUSAL, ROUNDS
        )
        weight = tl.exp2(score - peak[None, :])  # [keys, queries]
        value_grad = tl.dot(weight.to(grad_tile.dtype), grad_tile, value_grad, input_precision="ieee")
        grad = weight * (tl.dot(v_tile, tl.trans(grad_tile), input_precision="ieee") - delta[None, :])
        grad = tl.where(query[None, :] == key[:, None], 0.0, grad)  # with itself: no product
        dk = tl.dot(grad.to(q_tile.dtype), q_tile, dk, input_precision="ieee")
    dk *= (factor * scale)[:, None]
    if not FIRST:
        dk += load_tile(held, batch, head, key, exists, WIDTH)
        value_grad += load_tile(held_values, batch, head, key, exists, VALUE_WIDTH)
    if LAST:  # through the key's length, and on to what comes to the same vector as a query
        k_tile = k_tile.to(tl.float32)
        dk -= k_tile * (tl.sum(dk * k_tile, 1) * factor * factor)[:, None]
        dk += load_tile(of_queries, batch, head, key, exists, WIDTH)
        store_tile(dx, batch, head, key, exists, dk, WIDTH)
        store_tile(dv, batch, head, key, exists, value_grad, VALUE_WIDTH)
    else:
        store_tile(held, batch, head, key, exists, dk, WIDTH)
        store_tile(held_values, batch, head, key, exists, value_grad, VALUE_WIDTH)


@triton.jit
def _finite(lse):
    """In units of log 2; zero for a token that sees nothing, whose weights are then masked and not NaN."""
    return tl.where(lse == float("-inf"), 0.0, lse) * LOG2E

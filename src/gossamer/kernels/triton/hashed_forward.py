"""The forward kernel of hashed attention: in one round, a tile of sorted queries meets the chunks near its own."""

import triton
import triton.language as tl

from ..rows import load_tile, load_vector, padded, store_tile, store_vector
from .hashed_tiles import LN2, LOG2E, beside, existing, judged, located, tokens


@triton.jit(do_not_specialize=["turn"])
def forward(
    x, v, units, held, out, lse, sorted, turn, heads, unit,
    FIRST: tl.constexpr, CAUSAL: tl.constexpr, EDGE: tl.constexpr, ROUNDS: tl.constexpr,
    SIZE: tl.constexpr, BEFORE: tl.constexpr, MET: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes `out` and `lse`: what `held` and `lse` hold of earlier rounds, joined by what this round meets."""
    chunk, offset, batch, head = located(sorted, heads, SIZE, QUERIES)
    lane = batch * heads + head
    query, place, exists = tokens(sorted, lane, turn, chunk, offset, SIZE)
    known = existing(sorted, batch)
    seeing = exists & (place < known)
    q_tile = load_tile(x, batch, head, query, exists, WIDTH)
    if FIRST:
        mean = tl.zeros((QUERIES, padded(VALUE_WIDTH)), tl.float32)
        peak = tl.full((QUERIES,), float("-inf"), tl.float32)
    else:
        mean = load_tile(held, batch, head, query, exists, VALUE_WIDTH)
        peak = load_vector(lse, batch, head, query, exists) * LOG2E
    total = tl.where(peak == float("-inf"), 0.0, 1.0)
    parts: tl.constexpr = (SIZE + KEYS - 1) // KEYS
    for step in tl.range(0, MET * parts):
        theirs, near, there = beside(sorted, turn, chunk + step // parts - BEFORE, EDGE)
        key, spot, real = tokens(sorted, lane, theirs, near, step % parts * KEYS + tl.arange(0, KEYS), SIZE)
        real = real & (spot < known) & there
        k_tile = load_tile(x, batch, head, key, real, WIDTH)
        v_tile = load_tile(v, batch, head, key, real, VALUE_WIDTH)
        factor = load_vector(units, batch, head, key, real) * unit
        product = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * factor[None, :]
        visible = seeing[:, None] & real[None, :]
        score = judged(
            product, sorted, lane, turn, theirs, query[:, None], key[None, :], spot[None, :], visible, CAUSAL, ROUNDS
        )
        higher = tl.maximum(peak, tl.max(score, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf would be NaN
        weight = tl.exp2(score - finite[:, None])
        shrink = tl.exp2(peak - finite)
        total = total * shrink + tl.sum(weight, 1)
        mean = tl.dot(weight.to(v_tile.dtype), v_tile, mean * shrink[:, None], input_precision="ieee")
        peak = higher
    mean = mean / tl.where(total == 0.0, 1.0, total)[:, None]
    store_tile(out, batch, head, query, exists, mean, VALUE_WIDTH)
    store_vector(lse, batch, head, query, exists, (peak + tl.log2(total)) * LN2)

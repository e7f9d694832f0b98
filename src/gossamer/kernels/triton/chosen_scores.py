"""The kernels at chosen keys besides attention: an index's scores with their gradients, and where heads look.

The heads of a query meet the keys at its places, a tile at a time. What comes to a key from one query has one owner,
and is written where the inverse lists find it, to be summed in the order of the queries.
"""

import triton
import triton.language as tl

from .indexed_tiles import LOG2E, across, add_tail, leading, load_rows, row_of, store_rows, zeros_tail


@triton.jit
def query_at(number, queries):
    """(query, sequence) of a program: the last query, who may see most, first."""
    return queries - 1 - number % queries, number // queries


@triton.jit
def key_at(places, row, at, size):
    """(keys, which of them stand) at places of a query's row; key 0 where none stands."""
    key = tl.load(places + row * size + at, mask=at < size, other=-1)
    return tl.maximum(key, 0), key >= 0


@triton.jit
def some_heads(part, heads, ROWS: tl.constexpr):
    """(heads of a tile, which of them exist)."""
    head = part * ROWS + tl.arange(0, ROWS)
    return tl.minimum(head, heads - 1), head < heads


@triton.jit
def load_weights(weights, batch, head, query, exists):
    """What each head's product counts."""
    return tl.load(weights.pointer + row_of(weights, batch, head, query), mask=exists, other=0.0)


@triton.jit
def weighed(q_head, q_tail, k_head, k_tail, weight, RELU: tl.constexpr, WIDTH: tl.constexpr):
    """What some heads say of each key."""
    product = across(q_head, q_tail, k_head, k_tail, WIDTH)
    if RELU:
        product = tl.maximum(product, 0.0)
    return tl.sum(product * weight[:, None], 0)


@triton.jit
def index_scores(
    q, k, weights, places, scores, heads, queries, size,
    RELU: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes `scores`, minus infinity where no key stands."""
    query, batch = query_at(tl.program_id(0), queries)
    row = batch.to(tl.int64) * queries + query
    head, exists = some_heads(0, heads, ROWS)
    q_head, q_tail = load_rows(q, batch, head, query, exists, WIDTH)
    weight = load_weights(weights, batch, head, query, exists)
    for first in tl.range(0, size, KEYS):
        at = first + tl.arange(0, KEYS)
        key, there = key_at(places, row, at, size)
        k_head, k_tail = load_rows(k, batch, 0 * batch, key, there, WIDTH)
        if PARTS == 1:
            score = weighed(q_head, q_tail, k_head, k_tail, weight, RELU, WIDTH)
        else:
            score = tl.zeros((KEYS,), tl.float32)
            for part in tl.range(0, PARTS):
                head, exists = some_heads(part, heads, ROWS)
                q_head, q_tail = load_rows(q, batch, head, query, exists, WIDTH)
                weight = load_weights(weights, batch, head, query, exists)
                score += weighed(q_head, q_tail, k_head, k_tail, weight, RELU, WIDTH)
        tl.store(scores + row * size + at, tl.where(there, score, float("-inf")), mask=at < size)


@triton.jit
def index_scores_queries(
    q, k, weights, places, grad, dq, dweights, heads, queries, size,
    RELU: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes `dq` and `dweights`."""
    part = tl.program_id(0) % PARTS
    query, batch = query_at(tl.program_id(0) // PARTS, queries)
    row = batch.to(tl.int64) * queries + query
    head, exists = some_heads(part, heads, ROWS)
    q_head, q_tail = load_rows(q, batch, head, query, exists, WIDTH)
    weight = load_weights(weights, batch, head, query, exists)
    total, total_tail = tl.zeros((ROWS, leading(WIDTH)), tl.float32), zeros_tail(ROWS, WIDTH)
    of_weights = tl.zeros((ROWS,), tl.float32)
    for first in tl.range(0, size, KEYS):
        at = first + tl.arange(0, KEYS)
        key, there = key_at(places, row, at, size)
        come = tl.load(grad + row * size + at, mask=there, other=0.0)
        k_head, k_tail = load_rows(k, batch, 0 * batch, key, there, WIDTH)
        product = across(q_head, q_tail, k_head, k_tail, WIDTH)
        slope = come[None, :] * weight[:, None]
        if RELU:
            slope = tl.where(product > 0.0, slope, 0.0)
            product = tl.maximum(product, 0.0)
        of_weights += tl.sum(product * come[None, :], 1)
        slope = slope.to(k_head.dtype)
        total = tl.dot(slope, k_head, total, input_precision="ieee")
        total_tail = add_tail(slope, k_tail, total_tail, WIDTH)
    store_rows(dq, batch, head, query, exists, total, total_tail, WIDTH)
    tl.store(dweights.pointer + row_of(dweights, batch, head, query), of_weights, mask=exists)


@triton.jit(do_not_specialize=["first", "count", "lane"])
def index_scores_rows(
    q, k, weights, places, grad, of_keys, heads, queries, size, first, count, lane,
    RELU: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes what comes to each key from its query, in `of_keys` [1, sequences, queries · n, width].

    Of queries `first … first + count - 1`, from the sequence `lane` on.
    """
    number, tiles = tl.program_id(0), tl.cdiv(size, KEYS)
    at = number % tiles * KEYS + tl.arange(0, KEYS)
    place, own = number // tiles % count, number // tiles // count
    batch, query = lane + own, first + place
    row = batch.to(tl.int64) * queries + query
    key, there = key_at(places, row, at, size)
    come = tl.load(grad + row * size + at, mask=there, other=0.0)
    k_head, k_tail = load_rows(k, batch, 0 * batch, key, there, WIDTH)
    total, total_tail = tl.zeros((KEYS, leading(WIDTH)), tl.float32), zeros_tail(KEYS, WIDTH)
    for part in tl.range(0, PARTS):
        head, exists = some_heads(part, heads, ROWS)
        q_head, q_tail = load_rows(q, batch, head, query, exists, WIDTH)
        slope = come[:, None] * load_weights(weights, batch, head, query, exists)[None, :]
        if RELU:
            slope = tl.where(across(k_head, k_tail, q_head, q_tail, WIDTH) > 0.0, slope, 0.0)
        slope = slope.to(q_head.dtype)
        total = tl.dot(slope, q_head, total, input_precision="ieee")
        total_tail = add_tail(slope, q_tail, total_tail, WIDTH)
    entry = place.to(tl.int64) * size + at
    store_rows(of_keys, 0 * own, own, entry, there, total, total_tail, WIDTH)


@triton.jit
def attention_mass(
    q, k, lse, places, mass, groups, repeats, queries, size, unit,
    PARTS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes `mass`, all heads' probabilities summed; zero where no key stands."""
    tiles = tl.cdiv(size, KEYS)
    query, batch = query_at(tl.program_id(0) // tiles, queries)
    row = batch.to(tl.int64) * queries + query
    at = tl.program_id(0) % tiles * KEYS + tl.arange(0, KEYS)
    key, there = key_at(places, row, at, size)
    total = tl.zeros((KEYS,), tl.float32)
    for number in tl.range(0, groups):
        group = 0 * batch + number
        k_head, k_tail = load_rows(k, batch, group, key, there, WIDTH)
        for part in tl.range(0, PARTS):
            place, exists = some_heads(part, repeats, ROWS)
            head = group * repeats + place
            q_head, q_tail = load_rows(q, batch, head, query, exists, WIDTH)
            norm = tl.load(lse.pointer + row_of(lse, batch, head, query), mask=exists, other=float("-inf")) * LOG2E
            score = across(q_head, q_tail, k_head, k_tail, WIDTH) * unit
            looks = (norm > float("-inf"))[:, None] & there[None, :]  # who sees nothing looks nowhere
            total += tl.sum(tl.exp2(tl.where(looks, score - norm[:, None], float("-inf"))), 0)
    tl.store(mass + row * size + at, total, mask=at < size)

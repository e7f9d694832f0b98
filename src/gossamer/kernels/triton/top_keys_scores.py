"""Scores of an index: products of a tile of keys with the heads of several queries, summed over heads at once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..rows import Matrix, load_tile, padded
from ..top_keys import Indexed, room_for
from .backend import on
from .configs import index_config

LONGEST = 32
"""Tiles of keys that a program goes through."""
PROGRAMS = 1024
"""That there shall be, if need be by shorter ways through the keys."""


def scores_of(index: Indexed) -> Tensor:
    """float32 [B, Q, K], as `Scorer` says."""
    batch, heads, queries, width = index.q.shape
    keys = index.k.shape[1]
    scores = room_for(index)
    tile, head_tile = index_config(index.q.dtype, width, heads), triton.next_power_of_2(heads)
    some = max(1, tile.queries // head_tile)
    tiles, steps = triton.cdiv(queries, some), triton.cdiv(keys, tile.keys)
    each = max(1, min(LONGEST, batch * tiles * steps // PROGRAMS))
    spans = triton.cdiv(steps, each)
    tensors = _matrix(index.q), _matrix(index.k[:, None]), index.weights.contiguous(), index.visible.contiguous()
    scales = None if index.key_scales is None else index.key_scales.contiguous()
    with on(index.q.device):
        _scores[(batch * spans * tiles,)](
            *tensors, scales, scores, scores.stride(1), heads, queries, keys, each,
            WIDTH=width, QUERIES=some, HEADS=head_tile, WHOLE=head_tile == heads, KEYS=tile.keys, RELU=index.relu,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return scores


def _matrix(x: Tensor) -> Matrix:
    """As `Matrix.of`, but in vectors of 16 elements where they have eight bits each."""
    made = Matrix.of(x)
    whole = x.element_size() == 1 and not (made.batch | made.head | made.row) % 2 and made.unit.value > 1
    if not whole:
        return made
    return Matrix(x, made.batch // 2, made.head // 2, made.row // 2, made.column, tl.constexpr(2 * made.unit.value))


@triton.jit
def _scores(
    q, k, weights, visible, key_scales, scores, apart, heads, queries, keys, steps,
    WIDTH: tl.constexpr, QUERIES: tl.constexpr, HEADS: tl.constexpr, WHOLE: tl.constexpr, KEYS: tl.constexpr,
    RELU: tl.constexpr,
):  # fmt: skip
    """Scores of a few queries for some tiles of keys. Programs beside one another read the same keys."""
    tiles, spans = tl.cdiv(queries, QUERIES), tl.cdiv(keys, KEYS * steps)
    first_query = tl.program_id(0) % tiles * QUERIES
    first = tl.program_id(0) // tiles % spans * steps * KEYS
    batch = (tl.program_id(0) // tiles // spans).to(tl.int64)
    query = first_query + tl.arange(0, QUERIES)
    rows = batch * queries + query
    last = tl.max(tl.load(visible + rows, mask=query < queries, other=0), 0)
    if first < last:
        column = tl.arange(0, QUERIES * HEADS)
        its_query, its_head = first_query + column // HEADS, column % HEADS
        exists = (its_query < queries) & (its_head < heads)
        weight = tl.load(weights + (batch * queries + its_query) * heads + its_head, mask=exists, other=0.0)
        q_tile = tl.trans(_queries(q, batch, its_head, its_query, exists, WIDTH))
        for start in tl.range(first, tl.minimum(first + steps * KEYS, last), KEYS):
            key = start + tl.arange(0, KEYS)
            product = tl.dot(load_tile(k, batch, 0 * batch, key, key < keys, WIDTH), q_tile, input_precision="ieee")
            if RELU:
                product = tl.maximum(product, 0.0, propagate_nan=tl.PropagateNan.ALL)
            product *= weight[None, :]
            if not WHOLE:
                product = tl.where((its_head < heads)[None, :], product, 0.0)  # nothing times an infinite key is NaN
            made = tl.sum(tl.reshape(product, (KEYS, QUERIES, HEADS)), 2)
            if key_scales is not None:
                made *= tl.load(key_scales + batch * keys + key, mask=key < keys, other=0.0)[:, None]
            cells = scores + rows[None, :] * apart + key[:, None]
            tl.store(cells, made, mask=(key < keys)[:, None] & (query < queries)[None, :])


@triton.jit
def _queries(q, batch, head, query, exists, WIDTH: tl.constexpr):
    """[rows, padded width]: a query of a head in each row; zero where it does not exist and beyond the width."""
    column = tl.arange(0, padded(WIDTH))
    rows = q.pointer + (batch * q.batch + head.to(tl.int64) * q.head + query.to(tl.int64) * q.row) * q.unit
    mask = exists[:, None]
    if padded(WIDTH) != WIDTH:
        mask = mask & (column < WIDTH)[None, :]
    return tl.load(rows[:, None] + (column * q.column)[None, :], mask=mask, other=0.0)

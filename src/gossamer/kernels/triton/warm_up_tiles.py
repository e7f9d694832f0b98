"""Kernels of an index's lesson: where all heads look together, and what the index learns of it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rows import Matrix, Vector, cells, load_tile, load_vector, padded
from ..top_keys import Indexed
from .backend import on
from .configs import LESSON_KEYS, LESSON_MASS, LESSON_QUERIES, lesson_config
from .operands import LOG2E


def probabilities(q: Tensor, k: Tensor, lse: Tensor, visible: Tensor, scale: float) -> Tensor:
    """float32 [B, Q, K]: `sum_h exp(scale · q[h] · k - lse[h])`; behind `visible` [B, Q] it is anything."""
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    found = torch.empty(batch, queries, keys, dtype=torch.float32, device=q.device)
    tile = lesson_config(LESSON_MASS, q.dtype, width)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # who sees nothing looks nowhere
    shapes = heads, heads // k.shape[1], queries, keys
    tiles, spans = triton.cdiv(queries, tile.queries), triton.cdiv(keys, tile.keys)
    with on(q.device):
        _mass[(batch * tiles * spans,)](
            Matrix.of(q), Matrix.of(k), Vector.of(lse), visible.contiguous(), found, *shapes, scale * LOG2E,
            WIDTH=width, PART=min(64, triton.next_power_of_2(max(width, 16))), QUERIES=tile.queries, KEYS=tile.keys,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return found


def learn(index: Indexed, slope: Tensor, dq: Tensor, dk: Tensor, dweights: Tensor) -> None:
    """Writes the gradients `dq` [B, J, Q, d] and `dweights` [B, Q, J], and adds to `dk` [B, K, d] what is due.

    `slope` [B, Q, K] is the gradient of the scores, zero of what is not seen.
    """
    batch, heads, queries, width = index.q.shape
    keys = index.k.shape[1]
    shapes = heads, queries, keys
    tensors = Matrix.of(index.q), Matrix.of(index.k[:, None]), Vector.of(index.weights), index.visible.contiguous()
    constants = {"WIDTH": width, "RELU": index.relu}
    with on(index.q.device):
        tile = lesson_config(LESSON_QUERIES, index.q.dtype, width)
        _learn_queries[(batch * heads * triton.cdiv(queries, tile.queries),)](
            *tensors, Vector.of(slope), Matrix.of(dq), Vector.of(dweights), *shapes, **constants,
            QUERIES=tile.queries, KEYS=tile.keys, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        tile = lesson_config(LESSON_KEYS, index.q.dtype, width)
        _learn_keys[(batch * triton.cdiv(keys, tile.keys),)](
            *tensors, Vector.of(slope), Matrix.of(dk[:, None]), *shapes, **constants,
            QUERIES=tile.queries, KEYS=tile.keys, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip


@triton.jit
def _mass(
    q, k, lse, visible, found, heads, repeats, queries, keys, unit,
    WIDTH: tl.constexpr, PART: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Probabilities of a tile, summed over heads. Programs beside one another have the same queries."""
    spans, tiles = tl.cdiv(keys, KEYS), tl.cdiv(queries, QUERIES)
    first = tl.program_id(0) % spans * KEYS
    query = tl.program_id(0) // spans % tiles * QUERIES + tl.arange(0, QUERIES)
    batch = (tl.program_id(0) // spans // tiles).to(tl.int64)
    real = query < queries
    key = first + tl.arange(0, KEYS)
    if first < tl.max(tl.load(visible + batch * queries + query, mask=real, other=0), 0):
        total = tl.zeros((QUERIES, KEYS), tl.float32)
        for number in tl.range(0, heads):
            head = batch * 0 + number  # 64 bits, for products with strides
            product = tl.zeros((QUERIES, KEYS), tl.float32)
            for column in tl.range(0, WIDTH, PART):
                q_tile = _columns(q, batch, head, query, real, column, WIDTH, PART)
                k_tile = _columns(k, batch, head // repeats, key, key < keys, column, WIDTH, PART)
                product = tl.dot(q_tile, tl.trans(k_tile), product, input_precision="ieee")
            norm = load_vector(lse, batch, head, query, real) * 1.4426950408889634
            total += tl.exp2(product * unit - norm[:, None])
        rows = (batch * queries + query)[:, None] * keys + key[None, :]
        tl.store(found + rows, total, mask=real[:, None] & (key < keys)[None, :])


@triton.jit
def _columns(x, batch, head, index, exists, first, WIDTH: tl.constexpr, PART: tl.constexpr):
    """Some columns of rows; zero where they do not exist."""
    column = first + tl.arange(0, PART)
    rows = x.pointer + (batch * x.batch + head * x.head + index.to(tl.int64) * x.row) * x.unit
    mask = exists[:, None]
    if WIDTH % PART != 0:
        mask = mask & (column < WIDTH)[None, :]
    return tl.load(rows[:, None] + (column * x.column)[None, :], mask=mask, other=0.0)


@triton.jit
def _slopes(slope, batch, query, key, queries, keys):
    """[queries, keys]: gradients of a tile's scores."""
    rows = slope.pointer + batch * slope.batch + query.to(tl.int64) * slope.head
    inside = (query < queries)[:, None] & (key < keys)[None, :]
    return tl.load(rows[:, None] + (key * slope.row)[None, :], mask=inside, other=0.0)


@triton.jit
def _learn_queries(
    q, k, weights, visible, slope, dq, dweights, heads, queries, keys,
    WIDTH: tl.constexpr, RELU: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries of one head, and of their weights for it."""
    tiles = tl.cdiv(queries, QUERIES)
    query = tl.program_id(0) % tiles * QUERIES + tl.arange(0, QUERIES)
    head = (tl.program_id(0) // tiles % heads).to(tl.int64)
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    real = query < queries
    last = tl.max(tl.load(visible + batch * queries + query, mask=real, other=0), 0)
    q_tile = load_tile(q, batch, head, query, real, WIDTH)
    weight = tl.load(weights.pointer + batch * weights.batch + query * weights.head + head * weights.row, real, 0.0)
    made = tl.zeros((QUERIES, padded(WIDTH)), tl.float32)
    of_weight = tl.zeros((QUERIES,), tl.float32)
    for first in tl.range(0, last, KEYS):
        key = first + tl.arange(0, KEYS)
        k_tile = load_tile(k, batch, head * 0, key, key < keys, WIDTH)
        product = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
        slopes = _slopes(slope, batch, query, key, queries, keys)
        if RELU:
            slopes = tl.where(product > 0.0, slopes, 0.0)
        of_weight += tl.sum(tl.where(slopes == 0.0, 0.0, slopes * product), 1)
        of_product = (slopes * weight[:, None]).to(k_tile.dtype)
        made = tl.dot(of_product, k_tile, made, input_precision="ieee")
    pointers, mask = cells(dq, batch, head, query, real, WIDTH)
    tl.store(pointers, made.to(dq.pointer.dtype.element_ty), mask=mask)
    tl.store(
        dweights.pointer + batch * dweights.batch + query * dweights.head + head * dweights.row, of_weight, mask=real
    )


@triton.jit
def _learn_keys(
    q, k, weights, visible, slope, dk, heads, queries, keys,
    WIDTH: tl.constexpr, RELU: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Adds to a tile of keys what comes from all queries and heads."""
    tiles = tl.cdiv(keys, KEYS)
    key = tl.program_id(0) % tiles * KEYS + tl.arange(0, KEYS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    k_tile = load_tile(k, batch, batch * 0, key, key < keys, WIDTH)
    pointers, mask = cells(dk, batch, batch * 0, key, key < keys, WIDTH)
    made = tl.load(pointers, mask=mask, other=0.0)
    for first in tl.range(0, queries, QUERIES):
        query = first + tl.arange(0, QUERIES)
        real = query < queries
        if tl.program_id(0) % tiles * KEYS < tl.max(tl.load(visible + batch * queries + query, mask=real, other=0), 0):
            slopes = tl.trans(_slopes(slope, batch, query, key, queries, keys))
            for number in tl.range(0, heads):
                head = batch * 0 + number
                q_tile = load_tile(q, batch, head, query, real, WIDTH)
                at = weights.pointer + batch * weights.batch + query * weights.head + head * weights.row
                of_product = slopes * tl.load(at, mask=real, other=0.0)[None, :]
                if RELU:
                    product = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee")
                    of_product = tl.where(product > 0.0, of_product, 0.0)
                made = tl.dot(of_product.to(q_tile.dtype), q_tile, made, input_precision="ieee")
    tl.store(pointers, made, mask=mask)

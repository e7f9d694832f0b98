"""The hash in one launch: rotated vectors are never written, only which of them reaches furthest."""

from __future__ import annotations

from itertools import accumulate
from operator import mul

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rows import Matrix, load_tile, padded
from .backend import on

TOKENS = 64
MOST_COLUMNS = 64
"""Of a rotation at a time."""


def hashed(x: Tensor, rotations: Tensor, counts: tuple[int, ...]) -> Tensor:
    """int64 [B, H, R, N]: the buckets of `x` [B, H, N, D] by rotations [H, D, R, F], as `LSH.hash` says."""
    (batch, heads, length, width), rounds = x.shape, rotations.shape[2]
    buckets = torch.empty(batch, heads, rounds, length, dtype=torch.int64, device=x.device)
    exact = x.dtype == torch.float32  # without tensor cores, registers are short
    tile, most = (TOKENS // 2, 16) if exact else (TOKENS, MOST_COLUMNS)
    columns = max(16, min(most, triton.next_power_of_2(max(counts) // 2)))
    constants = {
        "HALVES": tuple(count // 2 for count in counts), "UNITS": (1, *accumulate(counts, mul)),
        "WIDTH": width, "COLUMNS": columns, "TOKENS": tile,
    }  # fmt: skip
    shapes = length, heads, rounds, rotations.shape[3]
    with on(x.device):
        launch = _hash[(batch * heads * triton.cdiv(length, tile),)]
        launch(Matrix.of(x), rotations.contiguous(), buckets, *shapes, **constants)
    return buckets


@triton.jit
def _hash(
    x, rotations, buckets, length, heads, rounds, columns,
    HALVES: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Writes the buckets of a tile of tokens in every round."""
    tiles = tl.cdiv(length, TOKENS)
    lane = tl.program_id(0) // tiles
    token = tl.program_id(0) % tiles * TOKENS + tl.arange(0, TOKENS)
    exists = token < length
    x_tile = load_tile(x, lane // heads, lane % heads, token, exists, WIDTH)
    ours = rotations + (lane % heads).to(tl.int64) * WIDTH * rounds * columns
    for turn in tl.range(0, rounds):
        number = tl.zeros((TOKENS,), tl.int64)
        rotation = ours + turn * columns
        for factor in tl.static_range(len(HALVES)):
            if HALVES[factor] > 0:
                number += UNITS[factor] * _furthest(x_tile, rotation, rounds * columns, HALVES[factor], WIDTH, COLUMNS)
                rotation += HALVES[factor]
        tl.store(buckets + (lane.to(tl.int64) * rounds + turn) * length + token, number, mask=exists)


@triton.jit
def _furthest(x_tile, rotation, stride, HALF: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """The index of the largest of [y; -y], the first of equal ones, for rows y of the tile's product with `HALF`
    columns of a rotation."""
    row = tl.arange(0, padded(WIDTH))
    best = tl.full((x_tile.shape[0],), float("-inf"), tl.float32)
    worst = tl.full((x_tile.shape[0],), float("inf"), tl.float32)
    at = tl.zeros((x_tile.shape[0],), tl.int32)
    under = tl.zeros((x_tile.shape[0],), tl.int32)
    for first in tl.range(0, HALF, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        real = column < HALF
        cells = rotation + row[:, None] * stride + column[None, :]
        part = tl.load(cells, mask=(row < WIDTH)[:, None] & real[None, :], other=0.0)
        rotated = tl.dot(x_tile, part, input_precision="ieee")
        high = tl.where(real[None, :], rotated, float("-inf"))
        low = tl.where(real[None, :], rotated, float("inf"))
        highest, lowest = tl.max(high, 1), tl.min(low, 1)
        at = tl.where(highest > best, first + tl.argmax(high, 1), at)
        under = tl.where(lowest < worst, first + tl.argmin(low, 1), under)
        best, worst = tl.maximum(best, highest), tl.minimum(worst, lowest)
    return tl.where(best >= -worst, at, under + HALF)

"""What turns vectors into keys, in one pass over them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..hashed import Scores
from ..rows import Matrix, Vector, load_tile, store_vector

TOKENS = 64


def units(x: Tensor, scores: Scores) -> Tensor:
    """float32 [B, H, N]: `Scores.units` of vectors [B, H, N, D] on the current device."""
    batch, heads, length, width = x.shape
    made = x.new_empty(batch, heads, length, dtype=torch.float32)
    grid = (batch * heads * triton.cdiv(length, TOKENS),)
    _units[grid](Matrix.of(x), Vector.of(made), length, heads, width * scores.epsilon, WIDTH=width, TOKENS=TOKENS)
    return made


@triton.jit
def _units(x, units, length, heads, added, WIDTH: tl.constexpr, TOKENS: tl.constexpr):
    tiles = tl.cdiv(length, TOKENS)
    lane = tl.program_id(0) // tiles
    token = tl.program_id(0) % tiles * TOKENS + tl.arange(0, TOKENS)
    exists = token < length
    tile = load_tile(x, lane // heads, lane % heads, token, exists, WIDTH).to(tl.float32)
    store_vector(units, lane // heads, lane % heads, token, exists, tl.rsqrt(tl.sum(tile * tile, 1) + added))

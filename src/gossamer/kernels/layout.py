"""Where results lie in memory: in the order of axes of the tensor that they belong to.

A model's heads are slices of one projection, [B, N, H, D] in memory. Results of the same order pass into the next
projection as views, and a compiler can be told their strides before anything runs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def empty_results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What a forward writes: its output [B, H, Q, Dv] beside `q`, and its log-sum-exp [B, H, Q] in float32."""
    return empty_beside(q, v.shape[-1]), q.new_empty(q.shape[:-1], dtype=torch.float32)


def empty_by_token(q: Tensor, width: int) -> Tensor:
    """An empty [B, H, Q, width] whose heads lie inside its queries, as they pass into the next projection."""
    batch, heads, queries, _ = q.shape
    return q.new_empty(batch, queries, heads, width).transpose(1, 2)


def empty_beside(x: Tensor, width: int, length: int | None = None) -> Tensor:
    """An empty [B, H, N, width] without gaps, its heads inside its positions where `x` [B, H, N, D] has them so.

    `length` stands in place of N, where it is given.
    """
    batch, heads, length = *x.shape[:2], x.shape[2] if length is None else length
    if _heads_inside(x):
        return x.new_empty(batch, length, heads, width).transpose(1, 2)
    return x.new_empty(batch, heads, length, width)


def beside(found: Tensor, x: Tensor) -> Tensor:
    """`found` itself where it lies as `empty_beside` promises, else a copy that does."""
    axes = found.transpose(1, 2) if _heads_inside(x) else found
    return found if axes.is_contiguous() else empty_beside(x, found.shape[-1]).copy_(found)


def _heads_inside(x: Tensor) -> bool:
    strides = x.stride()
    return strides[1] < strides[2]

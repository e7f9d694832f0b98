"""How the copy engine (TMA) sees a tensor: [batch, heads, length, width], any strides that it can take."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

ALIGNMENT = 16
"""Bytes: the copy engine wants its tensors to start, and every row to follow the last, at a multiple of this."""

ELEMENT = {
    torch.bfloat16: gl.bfloat16,
    torch.float16: gl.float16,
    torch.float32: gl.float32,
    torch.float8_e4m3fn: gl.float8e4nv,
}


class Tiles(TensorDescriptor):
    """A descriptor that does not check again what `addressable` saw to: that would take longer than the launch."""

    def __post_init__(self) -> None:
        pass


def addressable(x: Tensor) -> Tensor:
    """The numbers of `x` [B, H, N, D] where the copy engine can address them: `x` itself, a view, or a copy."""
    step = ALIGNMENT // x.element_size()
    batch, head, row, dense = x.stride()
    aligned = dense == 1 and x.data_ptr() % ALIGNMENT == 0
    if aligned and batch > 0 and head > 0 and row > 0 and not (batch % step or head % step or row % step):
        return x
    strides = [_plain_stride(x) if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True)][:3]
    if aligned and all(stride > 0 and stride % step == 0 for stride in strides):
        return x.as_strided(x.shape, (*strides, 1))  # an axis of one element may have any stride, and this one did
    return x.clone(memory_format=torch.contiguous_format)


def tiles(x: Tensor, rows: int, width: int) -> Tiles:
    """Tiles of `rows` × `width` of an addressable `x` [B, H, N, D], as [1, 1, rows, width]; outside of it are zeros."""
    block, layout = _tile(rows, width, x.dtype)
    return Tiles(x, x.shape, x.stride(), block, layout)


@lru_cache(maxsize=64)
def _tile(rows: int, width: int, dtype: torch.dtype) -> tuple[list[int], Any]:
    block = [1, 1, rows, width]
    return block, gl.NVMMASharedLayout.get_default_for(block, ELEMENT[dtype])


def _plain_stride(x: Tensor) -> int:
    return x.shape[3]  # a multiple of eight elements, and so one that the copy engine takes

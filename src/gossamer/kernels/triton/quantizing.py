"""Vectors in eight bits, read once: what `selectors.quantized` makes of them, to the bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backend import on

NUMBERS = 4096
"""Features that a program rounds."""


@triton.jit(do_not_specialize=["heads", "queries"])
def _quantize(
    x, values, scales, strides, heads, queries, width, least, largest,
    POWER_OF_TWO: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(queries, ROWS)
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    outer = tl.program_id(0) // tiles
    exists = row < queries
    columns = tl.arange(0, WIDTH)
    mask = exists[:, None] & (columns < width)[None, :]
    at = (outer // heads).to(tl.int64) * strides[0] + (outer % heads).to(tl.int64) * strides[1]
    at += row.to(tl.int64) * strides[2]
    given = tl.load(x + at[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    greatest = tl.max(tl.abs(given), 1)
    scale = tl.div_rn(tl.maximum(greatest, least), largest)
    scale = tl.where(tl.sum((given != given).to(tl.int32), 1) > 0, float("nan"), scale)
    if POWER_OF_TWO:
        bits = scale.to(tl.int32, bitcast=True)
        up = ((bits + 0x7FFFFF) & ~0x7FFFFF).to(tl.float32, bitcast=True)
        scale = tl.where(scale < float("inf"), up, float("nan"))
    rounded = tl.div_rn(given, tl.broadcast_to(scale[:, None], (ROWS, WIDTH)))
    rounded = tl.clamp(rounded, -largest, largest, propagate_nan=tl.PropagateNan.ALL)
    to = outer.to(tl.int64) * queries + row
    tl.store(values + to[:, None] * width + columns[None, :], rounded.to(values.dtype.element_ty), mask=mask)
    tl.store(scales + to, scale, mask=exists)


def quantize(x: Tensor, least: float, largest: float, *, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """(values in float8_e4m3fn, scales [B, J, Q] in float32) of x [B, J, Q, D]: each vector by a scale of its own."""
    batch, heads, queries, width = x.shape
    x = x if x.stride(3) == 1 else x.contiguous()
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(x.shape[:3], dtype=torch.float32, device=x.device)
    if scales.numel():
        columns = triton.next_power_of_2(width)
        rows = max(1, NUMBERS // columns)
        grid = (triton.cdiv(queries, rows) * batch * heads,)  # other axes than the first end at 65,535
        settings = heads, queries, width, least, largest, power_of_two, rows, columns
        with on(x.device):
            _quantize[grid](x, values, scales, x.stride()[:3], *settings, num_warps=4)
    return values, scales

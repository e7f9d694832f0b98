"""A softmax over some keys joined to one over others, in place, in one pass over both."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

ROWS = 32


def merge_into(out: Tensor, lse: Tensor, some_out: Tensor, some_lse: Tensor) -> None:
    """Makes `out` [B, H, Q, D] and `lse` [B, H, Q] those of the softmax over the keys of both."""
    batch, heads, queries, width = out.shape
    if out.stride(3) != 1 or some_out.stride(3) != 1:
        raise ValueError("out and some_out are to have the numbers of a head side by side")
    blocks = triton.cdiv(queries, ROWS)
    if not batch * heads * blocks:
        return
    strides = (*out.stride()[:3], *lse.stride(), *some_out.stride()[:3], *some_lse.stride())
    sizes = heads, queries, blocks, width, triton.next_power_of_2(width), ROWS
    _merge[(batch * heads * blocks,)](out, lse, some_out, some_lse, *strides, *sizes)


@triton.jit
def _merge(
    out, lse, some_out, some_lse,
    out_b, out_h, out_q, lse_b, lse_h, lse_q, some_b, some_h, some_q, some_lse_b, some_lse_h, some_lse_q,
    heads, queries, blocks, width, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    lane, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    b, h = (lane // heads).to(tl.int64), (lane % heads).to(tl.int64)
    rows = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    there = rows < queries
    at, some_at = lse + b * lse_b + h * lse_h + rows * lse_q, some_lse + b * some_lse_b + h * some_lse_h
    mine = tl.load(at, there, float("-inf"))
    other = tl.load(some_at + rows * some_lse_q, there, float("-inf"))
    peak = tl.maximum(mine, other)
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    kept, added = tl.exp(mine - peak), tl.exp(other - peak)
    total = kept + added
    whole = tl.where(total == 0.0, 1.0, total)
    mask = there[:, None] & (columns < width)[None, :]
    place = out + b * out_b + h * out_h + rows[:, None] * out_q + columns[None, :]
    some_place = some_out + b * some_b + h * some_h + rows[:, None] * some_q + columns[None, :]
    held = tl.load(place, mask, 0.0).to(tl.float32)
    come = tl.load(some_place, mask & (added > 0.0)[:, None], 0.0).to(tl.float32)  # where nothing is seen is no number
    joined = held * (kept / whole)[:, None] + come * (added / whole)[:, None]
    tl.store(place, joined.to(out.dtype.element_ty), mask)
    tl.debug_barrier()  # several warps read a row's old log-sum-exp: none may be late
    tl.store(at, peak + tl.log(total), there)

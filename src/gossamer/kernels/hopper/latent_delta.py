"""What the gradients of a row's scores are measured from: the product of its output and its output's gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 8, tl.constexpr(512)


@triton.jit(do_not_specialize=["heads", "queries"])
def _delta(out, grad, grad_lse, delta, out_strides, grad_strides, heads, queries, ROWS: tl.constexpr):
    tiles = tl.cdiv(queries, ROWS)
    query = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    sequence_head = (tl.program_id(0) // tiles).to(tl.int64)
    head, batch = sequence_head % heads, sequence_head // heads
    exists = query < queries
    at = query.to(tl.int64)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    a = out + batch * out_strides[0] + head * out_strides[1] + at * out_strides[2] + column
    b = grad + batch * grad_strides[0] + head * grad_strides[1] + at * grad_strides[2] + column
    a = tl.load(a, mask=exists[:, None], other=0.0).to(tl.float32)
    total = tl.sum(a * tl.load(b, mask=exists[:, None], other=0.0).to(tl.float32), 1)
    to = sequence_head * queries + query
    if grad_lse is not None:
        total -= tl.load(grad_lse + to, mask=exists, other=0.0)
    tl.store(delta + to, total, mask=exists)


def delta_of(out: Tensor, grad_out: Tensor, grad_lse: Tensor | None) -> Tensor:
    """[B, H, Q] in float32: the rows' products of `out` and `grad_out` [B, H, Q, 512], less a dense `grad_lse`."""
    batch, heads, queries, _ = out.shape
    delta = torch.empty(batch, heads, queries, dtype=torch.float32, device=out.device)
    grid = (triton.cdiv(queries, ROWS) * batch * heads,)  # other axes than the first end at 65,535
    strides = out.stride()[:3], grad_out.stride()[:3]
    _delta[grid](out, grad_out, grad_lse, delta, *strides, heads, queries, ROWS, num_warps=4)
    return delta

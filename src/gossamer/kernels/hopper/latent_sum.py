"""Sums, for every latent, what the queries that chose it owe to it: one program a latent, in one order, no atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


WIDTH, HALF, ROTARY = 576, tl.constexpr(512), tl.constexpr(64)
TOGETHER = 4
"""Rows that a program asks for before it waits for the first."""




@triton.jit(do_not_specialize=["parts", "places"])
def _sum(scratch, starts, entries, totals, parts, places, WIDTH: tl.constexpr, TOGETHER: tl.constexpr):
    key = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(starts + key), tl.load(starts + key + 1)
    wide, narrow = tl.arange(0, HALF), HALF + tl.arange(0, ROTARY)
    total = tl.zeros([HALF], tl.float32)
    rest = tl.zeros([ROTARY], tl.float32)
    for first in range(begin * parts, end * parts, TOGETHER):
        number = first + tl.arange(0, TOGETHER)
        exists = number < end * parts
        entry = tl.load(entries + number // parts, mask=exists, other=0)
        row = (entry // places).to(tl.int64) * parts + number % parts
        at = (row * places + entry % places)[:, None] * WIDTH
        total += tl.sum(tl.load(scratch + at + wide[None, :], mask=exists[:, None], other=0.0).to(tl.float32), 0)
        rest += tl.sum(tl.load(scratch + at + narrow[None, :], mask=exists[:, None], other=0.0).to(tl.float32), 0)
    if end > begin:
        to = totals + key * WIDTH
        tl.store(to + wide, tl.load(to + wide) + total)
        tl.store(to + narrow, tl.load(to + narrow) + rest)


def add_owed(scratch: Tensor, lists: tuple[Tensor, Tensor], totals: Tensor, *, parts: int, places: int) -> None:
    """Adds to totals [K, 576] in float32 the rows of the scratch [groups · parts, places, 576] by the lists of a chunk.

    An entry of a list is group · places + place, the group counted from the first of the chunk.
    """
    keys = totals.shape[0]
    _sum[(keys,)](scratch, *lists, totals, parts, places, WIDTH, TOGETHER, num_warps=2)


def in_order(totals: Tensor, dtype: torch.dtype) -> Tensor:
    """Totals [..., 576], whose columns stand as threads hold them, as columns: the reverse of `in_threads`."""
    split = totals.unflatten(-1, (-1, 4, 4, 2)).transpose(-3, -2)
    return split.flatten(-4).to(dtype)

"""Sums, for every latent, what the queries that chose it owe to it: in one order, and without atomics.

All lists lie end to end. Blocks of them that are one latent's alone are summed first, each by a program of its own: so
no program has all of a latent to itself that everybody chose.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .latent_lists import GroupLists

WIDTH, HALF, ROTARY = 576, tl.constexpr(512), tl.constexpr(64)
TOGETHER = 2
"""Rows that a program asks for before it waits for the first."""
BLOCK = 256
"""Entries of a block. Lists that are shorter, as most are of a long text, hold none: what is summed in two steps is
written and read once more."""


class Owed(NamedTuple):
    """For every latent, a list of the places that name it in the lists of a chunk."""

    starts: Tensor
    """int32 [B · K + 1]"""
    entries: Tensor
    """int32: places, as group · places + place, the group counted from the first of the chunk; a list ascends."""
    named: Tensor
    """int32, like the entries: whose list it is; B · K behind the last."""


@triton.jit
def _added(total, rest, scratch, entries, begin, end, parts, places, WIDTH: tl.constexpr, TOGETHER: tl.constexpr):
    """(total, rest) and the rows of entries `begin` … `end` - 1."""
    wide, narrow = tl.arange(0, HALF), tl.arange(0, ROTARY) + HALF
    for first in range(begin * parts, end * parts, TOGETHER):
        number = first + tl.arange(0, TOGETHER)
        exists = number < end * parts
        entry = tl.load(entries + number // parts, mask=exists, other=0)
        row = (entry // places).to(tl.int64) * parts + number % parts
        at = (row * places + entry % places)[:, None] * WIDTH
        total += tl.sum(tl.load(scratch + at + wide[None, :], mask=exists[:, None], other=0.0).to(tl.float32), 0)
        rest += tl.sum(tl.load(scratch + at + narrow[None, :], mask=exists[:, None], other=0.0).to(tl.float32), 0)
    return total, rest


@triton.jit(do_not_specialize=["absent", "parts", "places"])
def _sum_blocks(
    scratch, entries, named, sums, absent, parts, places,
    WIDTH: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the sum of a block whose entries are all of one list."""
    block = tl.program_id(0)
    begin = block * BLOCK
    key = tl.load(named + begin)
    if (key < absent) & (key == tl.load(named + begin + BLOCK - 1)):
        total, rest = tl.zeros([HALF], tl.float32), tl.zeros([ROTARY], tl.float32)
        total, rest = _added(total, rest, scratch, entries, begin, begin + BLOCK, parts, places, WIDTH, TOGETHER)
        to = sums + block.to(tl.int64) * WIDTH
        tl.store(to + tl.arange(0, HALF), total)
        tl.store(to + HALF + tl.arange(0, ROTARY), rest)


@triton.jit(do_not_specialize=["parts", "places"])
def _sum(
    scratch, starts, entries, sums, totals, parts, places,
    WIDTH: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds to a latent's total what stands before the first block of its list, its blocks, and what stands behind."""
    key = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(starts + key), tl.load(starts + key + 1)
    wide, narrow = tl.arange(0, HALF), tl.arange(0, ROTARY) + HALF
    if end > begin:
        total, rest = tl.zeros([HALF], tl.float32), tl.zeros([ROTARY], tl.float32)
        first = tl.cdiv(begin, BLOCK)
        last = tl.maximum(end // BLOCK, first)
        before = tl.minimum(first * BLOCK, end)
        total, rest = _added(total, rest, scratch, entries, begin, before, parts, places, WIDTH, TOGETHER)
        for block in range(first, last):
            row = sums + (key * 0 + block) * WIDTH  # 64 bits
            total += tl.load(row + wide)
            rest += tl.load(row + narrow)
        behind = tl.maximum(last * BLOCK, before)
        total, rest = _added(total, rest, scratch, entries, behind, end, parts, places, WIDTH, TOGETHER)
        to = totals + key * WIDTH
        tl.store(to + wide, tl.load(to + wide) + total)
        tl.store(to + narrow, tl.load(to + narrow) + rest)


def owed_to(lists: GroupLists, keys: int, chunk: tuple[int, int]) -> Owed:
    """The list of every latent, of a chunk (first, count) of the groups of all sequences."""
    batch, groups, places = lists.entries.shape
    first, count = chunk
    entries, counts = (x.flatten(0, 1)[first : first + count] for x in lists[:2])
    device = entries.device
    sequence = torch.arange(first, first + count, device=device, dtype=torch.int32)[:, None] // groups
    exists = torch.arange(places, device=device) < counts[:, None]
    named = torch.where(exists, entries + sequence * keys, batch * keys).flatten()
    named, order = named.sort(stable=True)
    starts = torch.searchsorted(named, torch.arange(batch * keys + 1, device=device, dtype=torch.int32), out_int32=True)
    return Owed(starts, order.to(torch.int32), named)


def add_owed(scratch: Tensor, owed: Owed, totals: Tensor, *, parts: int, places: int) -> None:
    """Adds to totals [B, K, 576] in float32 rows of the scratch [groups · parts, places, 576], by `owed_to`."""
    keys, blocks = totals.shape[0] * totals.shape[1], owed.entries.numel() // BLOCK
    sums = totals.new_empty(blocks, WIDTH)
    constants = {"WIDTH": WIDTH, "TOGETHER": TOGETHER, "BLOCK": BLOCK, "num_warps": 1}
    if blocks:
        _sum_blocks[(blocks,)](scratch, owed.entries, owed.named, sums, keys, parts, places, **constants)
    _sum[(keys,)](scratch, owed.starts, owed.entries, sums, totals, parts, places, **constants)


def in_order(totals: Tensor, dtype: torch.dtype) -> Tensor:
    """Totals [..., 576], whose columns stand as threads hold them, as columns: the reverse of `in_threads`."""
    split = totals.unflatten(-1, (-1, 4, 4, 2)).transpose(-3, -2)
    return split.flatten(-4).to(dtype)

"""Sums, for every latent, what the queries that chose it owe to it: one program a latent, in one order, no atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .latent_lists import GroupLists

WIDTH, HALF, ROTARY = 576, tl.constexpr(512), tl.constexpr(64)
TOGETHER = 4
"""Rows that a program asks for before it waits for the first."""


@triton.jit(do_not_specialize=["parts", "places"])
def _sum(scratch, starts, entries, totals, parts, places, WIDTH: tl.constexpr, TOGETHER: tl.constexpr):
    key = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(starts + key), tl.load(starts + key + 1)
    wide, narrow = tl.arange(0, HALF), tl.arange(0, ROTARY) + HALF
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


def owed_to(lists: GroupLists, keys: int, chunk: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(starts [B · K + 1], entries) of every latent's list: the places of the lists of a chunk that name it.

    A place is group · places + place, the group counted from the first of the chunk, and a list ascends.
    """
    batch, groups, places = lists.entries.shape
    first, count = chunk
    entries, counts = (x.flatten(0, 1)[first : first + count] for x in lists[:2])
    device = entries.device
    sequence = torch.arange(first, first + count, device=device, dtype=torch.int32)[:, None] // groups
    exists = torch.arange(places, device=device) < counts[:, None]
    named = torch.where(exists, entries + sequence * keys, batch * keys).flatten()
    named, order = named.sort(stable=True)
    starts = torch.searchsorted(named, torch.arange(batch * keys + 1, device=device, dtype=torch.int32), out_int32=True)
    return starts, order.to(torch.int32)


def add_owed(scratch: Tensor, lists: tuple[Tensor, Tensor], totals: Tensor, *, parts: int, places: int) -> None:
    """Adds to totals [B, K, 576] in float32 rows of the scratch [groups · parts, places, 576], by `owed_to`."""
    keys = totals.shape[0] * totals.shape[1]
    _sum[(keys,)](scratch, *lists, totals, parts, places, WIDTH, TOGETHER, num_warps=2)


def in_order(totals: Tensor, dtype: torch.dtype) -> Tensor:
    """Totals [..., 576], whose columns stand as threads hold them, as columns: the reverse of `in_threads`."""
    split = totals.unflatten(-1, (-1, 4, 4, 2)).transpose(-3, -2)
    return split.flatten(-4).to(dtype)

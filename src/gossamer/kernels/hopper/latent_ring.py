"""What the kernels over chosen latents share: a tile of 64 latents, gathered row by row into shared memory.

A latent is key and value at once (DeepSeek-V2, arXiv 2405.04434): its first 512 columns are both, and the 64 behind
them, which carry the position, belong to the key alone. A tile lies as two halves of 256 columns and those 64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, fence_async_shared, mbarrier, warpgroup_mma

from .descriptors import ELEMENT, Tiles
from .ring import TILE, barriers, opaque

HALF = gl.constexpr(256)
"""Columns of a value that one of two consumers adds up: more would not fit its registers."""

ROTARY = gl.constexpr(64)
"""Columns of a key behind those of its value."""

VECTOR = gl.constexpr(8)
"""Elements of 16 bytes, which one copy moves."""

GATHERERS = gl.constexpr(128)
"""Threads that copy; each tells a barrier when its own copies are there."""

WARPS = gl.constexpr((4, 4))
"""Of the second consumer and of those that copy."""

REGISTERS = gl.constexpr((216, 72))
"""A thread's in the same warpgroups; the first consumer has as many as the second."""

SCORES = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
WIDE = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16]))


@dataclass(frozen=True)
class Packing:
    """How 64 rows are made up of `queries` neighbouring queries of `heads` heads each."""

    heads: int

    @classmethod
    def of(cls, heads: int) -> Packing:
        """The one that leaves the fewest rows empty, and of these the one with the fewest queries."""
        return min((cls(each) for each in (64, 32, 16, 8)), key=lambda each: -(-heads // each.heads) * each.heads)

    @property
    def queries(self) -> int:
        return TILE.value // self.heads


class Lists(NamedTuple):
    """Which latents each group of queries reads: `counts[b, t]` places of `entries[b, t]`, in whatever order."""

    entries: gl.tensor
    counts: gl.tensor
    members: gl.tensor
    """For each place the queries of the group that see it, a bit each; None where a group is one query."""
    groups: gl.tensor
    places: gl.tensor


class Chunk(NamedTuple):
    """Some groups of all sequences laid end to end, the heads of each in so many parts."""

    heads: gl.tensor
    queries: gl.tensor
    parts: gl.tensor
    items: gl.tensor
    first: gl.tensor


class Place(NamedTuple):
    """Where an item's 64 rows stand, and how many latents they read."""

    batch: gl.tensor
    group: gl.tensor
    head: gl.tensor
    count: gl.tensor


class Latents(NamedTuple):
    """Rows to gather: where they begin, and how far apart rows and sequences lie, in vectors of 16 bytes."""

    pointer: gl.tensor
    row: gl.tensor
    batch: gl.tensor


def heads_tiles(x: Tensor, packing: Packing, width: int) -> Tiles:
    """Tiles of 64 rows of an addressable x [B, H, Q, D]: `packing.heads` heads of each of a few queries."""
    turned = x.transpose(1, 2)
    block = [1, packing.queries, packing.heads, width]
    layout = gl.NVMMASharedLayout.get_default_for(block, ELEMENT[x.dtype])
    return Tiles(x, turned.shape, turned.stride(), block, layout)


def swizzled() -> gl.NVMMASharedLayout:
    """How matrix instructions want tiles of half precision that are at least 64 columns wide."""
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


SWIZZLED = gl.constexpr(swizzled())
COPIED = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))


def rows_tiles(x: Tensor) -> Tiles:
    """Tiles of 64 rows of a dense x [..., 64] laid end to end."""
    layout = gl.NVMMASharedLayout.get_default_for([TILE.value, x.shape[-1]], ELEMENT[x.dtype])
    shape = [x.numel() // x.shape[-1], x.shape[-1]]
    return Tiles(x, shape, [x.shape[-1], 1], [TILE.value, x.shape[-1]], layout)


@gluon.jit
def place_of(item, lists, chunk, config: gl.constexpr):
    """The place of an item: all parts of a group's heads come one after the other, for they read the same latents."""
    HEADS: gl.constexpr = config.heads
    part, group = item % chunk.parts, item // chunk.parts + chunk.first
    count = gl.load(lists.counts + group)
    return Place(group // lists.groups, group % lists.groups, part * HEADS, count)


@gluon.jit
def latents_in_memory(dtype: gl.constexpr, tiles: gl.constexpr, besides: gl.constexpr, readers: gl.constexpr):
    """(halves of the values, two a tile; the rotary columns) in shared memory, and barriers (full, empty).

    A tile is there when all that copy have said so, and `besides` so many others. It has so many `readers`.
    """
    halves = gl.allocate_shared_memory(dtype, [2 * tiles, TILE, HALF], SWIZZLED)
    rotary = gl.allocate_shared_memory(dtype, [tiles, TILE, ROTARY], SWIZZLED)
    return halves, rotary, barriers(tiles, GATHERERS + besides), barriers(tiles, readers)


@gluon.jit
def listed(lists, batch, group, place, count):
    """(latents at places place ... place + 63 of a group's list, which of them there are)."""
    places = place + gl.arange(0, TILE, gl.SliceLayout(1, COPIED))
    row = lists.entries + (batch.to(gl.int64) * lists.groups + group) * lists.places
    exists = places < count
    return gl.load(row + places, mask=exists, other=-1), exists


@gluon.jit
def members_of(lists, at, places):
    """The bits of a group's queries that see the latents at these places."""
    row = lists.members + (at.batch.to(gl.int64) * lists.groups + at.group) * lists.places
    return gl.load(row + places, mask=places < at.count, other=0)


@gluon.jit
def gather(latents, batch, entries, exists, halves, rotary, i):
    """Begins to copy latents into tile i; those that do not exist are zeros."""
    rows = latents.pointer + ((batch.to(gl.int64) * latents.batch + entries.to(gl.int64) * latents.row) * VECTOR)
    rows = gl.expand_dims(rows, 1)
    exists = gl.expand_dims(exists, 1)
    wide = gl.expand_dims(gl.arange(0, HALF, gl.SliceLayout(0, COPIED)), 0)
    narrow = gl.expand_dims(gl.arange(0, ROTARY, gl.SliceLayout(0, COPIED)), 0)
    for half in gl.static_range(2):
        async_copy.async_copy_global_to_shared(halves.index(2 * i + half), rows + (half * HALF + wide), mask=exists)
    async_copy.async_copy_global_to_shared(rotary.index(i), rows + (2 * HALF + narrow), mask=exists)


@gluon.jit
def gathered(ready, parity):
    """Waits until a tile is there, for matrix instructions too."""
    mbarrier.wait(ready, parity)
    fence_async_shared()


@gluon.jit
def products(a, b):
    """a @ b^T over all columns, begun; both are (first half, second half, rotary columns) in memory."""
    s = gl.zeros((TILE, TILE), gl.float32, SCORES)
    s = warpgroup_mma(a[0], b[0].permute((1, 0)), s, use_acc=False, is_async=True)
    s = warpgroup_mma(a[1], b[1].permute((1, 0)), s, is_async=True)
    return warpgroup_mma(a[2], b[2].permute((1, 0)), s, is_async=True)


@gluon.jit
def as_matrix(tile):
    """A tile [1, queries, heads, width] in memory as [64, width]."""
    return tile.reshape((TILE, tile.shape[3]))


@gluon.jit
def own_rows(halves, rotary):
    """(two halves, rotary columns) of 64 rows in memory; their addresses are worked out anew where they are used."""
    first = opaque(gl.to_tensor(0))
    return as_matrix(halves.index(first)), as_matrix(halves.index(first + 1)), as_matrix(rotary.index(first))

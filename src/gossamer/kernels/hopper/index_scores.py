"""Scores of an index on Hopper: tiles of 64 keys pass by a few queries, all of whose heads stand side by side.

A score is a weighted sum over the heads, and a thread of a matrix instruction holds a quarter of them: what is left to
add between threads is little. Two consumer warpgroups take tiles in turns, one multiplying while the other sums up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from ..devices import made_current, multiprocessors
from ..top_keys import Indexed, room_for
from .configs import PAIR_REGISTERS, PAIR_WARPS
from .descriptors import ELEMENT, Tiles, addressable
from .launch import Launch, Operands, launch
from .ring import TILE, barriers, phase, settle, slot, turns_of
from .sweep import buffers

MOST_COLUMNS, MOST_QUERIES = 256, 16
"""Heads of queries, and queries, that meet a tile of keys at once: the widest matrix instruction, and what registers
take."""

SEGMENT = 256
"""Tiles of keys that an item takes at most."""

NAN = gl.constexpr(tl.PropagateNan.ALL)
"""What is no number stays none where it is rectified: a key without a score is never chosen."""

FEWEST = gl.constexpr(2)
"""Tiles that an item takes at least, of keys that nobody sees if need be: then no warpgroup ends with weights on their
way to registers that go to others."""

SLOTS = {1: 8, 2: 4}
"""Tiles of keys on their way, by the bytes of an element."""

Q_SLOTS = gl.constexpr(2)
"""Tiles of queries: the next item's are there when it begins."""


@dataclass(frozen=True)
class IndexConfig:
    """One compiled kernel."""

    heads: int
    slots: int
    relu: bool
    depth: int
    """Elements that a matrix instruction sums over."""

    @property
    def queries(self) -> int:
        return queries_together(self.heads)

    @property
    def columns(self) -> int:
        return self.queries * self.heads


def queries_together(heads: int) -> int:
    """Queries that meet a tile of keys at once."""
    return min(MOST_QUERIES, MOST_COLUMNS // heads)


def segments_of(tiles: int, places: int, programs: int) -> tuple[int, int]:
    """(segments of so many tiles of keys, tiles of each): of one length, as few as `SEGMENT` allows, and more where
    queries stand at fewer places than there are programs."""
    most = max(-(-tiles // SEGMENT), -(-programs // places))
    length = max(FEWEST.value, -(-tiles // most))
    return -(-tiles // length), length


class Work(NamedTuple):
    """Every few queries, in each segment of keys, are an item."""

    seen: gl.tensor
    """How many of the first keys they see, the one that sees the most."""
    queries: gl.tensor
    keys: gl.tensor
    apart: gl.tensor
    """Scores from one query to the next."""
    tiles: gl.tensor
    segments: gl.tensor
    length: gl.tensor
    """Tiles of keys in each segment."""
    items: gl.tensor


class Item(NamedTuple):
    """Where an item stands: queries, the first tile of keys, and how many tiles they see there."""

    batch: gl.tensor
    query: gl.tensor
    first: gl.tensor
    tiles: gl.tensor


@gluon.jit
def _item(turn, work, config: gl.constexpr):
    QUERIES: gl.constexpr = config.queries
    number = gl.program_id(0) + turn * gl.num_programs(0)
    place = number // work.segments
    # A program has another segment each turn: the last ones hold fewer keys that are seen.
    segment = (number + place * work.segments // gl.num_programs(0)) % work.segments
    batch, query = place // work.tiles, place % work.tiles * QUERIES
    seen = gl.load(work.seen + place)
    first = segment * work.length
    return Item(batch, query, first, gl.minimum(gl.maximum(gl.cdiv(seen, TILE) - first, FEWEST), work.length))


@gluon.jit
def _producer(q, k, work, room, config: gl.constexpr):
    q_tiles, q_full, q_empty, k_tiles, full, empty = room
    SLOTS: gl.constexpr = config.slots
    done = 0
    for turn in range(turns_of(work)):
        item, own = _item(turn, work, config), slot(turn, Q_SLOTS)
        mbarrier.wait(q_empty.index(own), phase(turn, Q_SLOTS) ^ 1)
        mbarrier.expect(q_full.index(own), q.block_type.nbytes)
        tma.async_copy_global_to_shared(q, [item.batch, item.query, 0, 0], q_full.index(own), q_tiles.index(own))
        for tile in range(item.tiles):
            i = done + tile
            mbarrier.wait(empty.index(slot(i, SLOTS)), phase(i, SLOTS) ^ 1)
            ready = full.index(slot(i, SLOTS))
            mbarrier.expect(ready, k.block_type.nbytes)
            at = [item.batch, 0, (item.first + tile) * TILE, 0]
            tma.async_copy_global_to_shared(k, at, ready, k_tiles.index(slot(i, SLOTS)))
        done += item.tiles


@gluon.jit
def _summed(products, weights, config: gl.constexpr):
    """[64, queries]: products [64, queries · heads] as the weights count them."""
    if config.relu:
        products = gl.maximum(products, 0.0, propagate_nan=NAN)
    counted = products * gl.expand_dims(weights, 0)
    return gl.sum(gl.reshape(counted, (TILE, config.queries, config.heads)), 2)


@gluon.jit
def _store(scores, key_scales, x, item, tile, work, config: gl.constexpr):
    """Writes [64, queries] to scores [B, Q, K], times the keys' scales."""
    keys = (item.first + tile) * TILE + gl.arange(0, TILE, gl.SliceLayout(1, x.type.layout))
    queries = item.query + gl.arange(0, config.queries, gl.SliceLayout(0, x.type.layout))
    exists = gl.expand_dims(keys < work.keys, 1) & gl.expand_dims(queries < work.queries, 0)
    if key_scales is not None:
        scale = gl.load(key_scales + item.batch.to(gl.int64) * work.keys + keys, mask=keys < work.keys, other=0.0)
        x *= gl.expand_dims(scale, 1)
    rows = (item.batch.to(gl.int64) * work.queries + queries) * work.apart
    gl.store(scores + (gl.expand_dims(rows, 0) + gl.expand_dims(keys, 1)), x, mask=exists)


@gluon.jit
def _tile(given, room, done, tile, config: gl.constexpr):
    """Scores of an item's queries with one tile of keys."""
    scores, key_scales, q, w, item, work = given
    k_tiles, full, empty = room[3], room[4], room[5]
    SLOTS: gl.constexpr = config.slots
    COLUMNS: gl.constexpr = config.columns
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, config.depth])
    here = slot(done + tile, SLOTS)
    mbarrier.wait(full.index(here), phase(done + tile, SLOTS))
    k = k_tiles.index(here).reshape((TILE, k_tiles.shape[4]))
    products = gl.zeros((TILE, COLUMNS), gl.float32, layout)
    products = warpgroup_mma(k, q, products, use_acc=False, is_async=True)
    products = warpgroup_mma_wait(0, deps=(products,))
    mbarrier.arrive(empty.index(here), count=1)
    _store(scores, key_scales, _summed(products, w, config), item, tile, work, config)


@gluon.jit
def _consumer(weights, key_scales, scores, work, room, config: gl.constexpr, c: gl.constexpr):
    q_tiles, q_full, q_empty = room[0], room[1], room[2]
    WIDTH: gl.constexpr = q_tiles.shape[4]
    COLUMNS: gl.constexpr = config.columns
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, config.depth])
    column = gl.arange(0, COLUMNS, gl.SliceLayout(0, layout))
    done = 0
    for turn in range(turns_of(work)):
        item = _item(turn, work, config)
        exists = column < (work.queries - item.query) * config.heads
        row = (item.batch.to(gl.int64) * work.queries + item.query) * config.heads
        w = gl.load(weights + row + column, mask=exists, other=0.0)
        own = slot(turn, Q_SLOTS)
        mbarrier.wait(q_full.index(own), phase(turn, Q_SLOTS))
        q = q_tiles.index(own).reshape((COLUMNS, WIDTH)).permute((1, 0))
        skipped = (c + done) & 1
        given = (scores, key_scales, q, w, item, work)
        _tile(given, room, done, skipped, config)
        for n in range(1, (item.tiles - skipped + 1) // 2):
            _tile(given, room, done, skipped + 2 * n, config)
        mbarrier.arrive(q_empty.index(own), count=1)
        done += item.tiles
    settle()


@gluon.jit(do_not_specialize=["queries", "keys", "apart", "tiles", "segments", "length", "items"])
def _kernel(
    q, k, weights, seen, key_scales, scores, queries, keys, apart, tiles, segments, length, items,
    config: gl.constexpr,
):  # fmt: skip
    SLOTS: gl.constexpr = config.slots
    q_tiles, q_full, q_empty = buffers(q, Q_SLOTS), barriers(Q_SLOTS, 1), barriers(Q_SLOTS, 2)
    room = (q_tiles, q_full, q_empty, buffers(k, SLOTS), barriers(SLOTS, 1), barriers(SLOTS, 1))
    work = Work(seen, queries, keys, apart, tiles, segments, length, items)
    gl.warp_specialize(
        [
            (_consumer, (weights, key_scales, scores, work, room, config, 0)),
            (_consumer, (weights, key_scales, scores, work, room, config, 1)),
            (_producer, (q, k, work, room, config)),
        ],
        PAIR_WARPS,
        PAIR_REGISTERS,
    )


def score(index: Indexed) -> Tensor:
    """[B, Q, K], as `Scorer` says."""
    scores = room_for(index)
    with made_current(index.q.device):
        scales = None if index.key_scales is None else index.key_scales.contiguous()
        operands = _rows(index.q), _rows(index.k), index.weights.contiguous(), _seen(index), scales, scores
        launch(_prepared, operands, index.relu)
    return scores


def _rows(x: Tensor) -> Tensor:
    """x as the copy engine can address it: itself, or a copy."""
    return addressable(x if x.dim() == 4 else x[:, None])


def _seen(index: Indexed) -> Tensor:
    """int32 [B, tiles of queries]: how many of the first keys the queries of a tile see, the one that sees the most."""
    together = queries_together(index.q.shape[1])
    return pad(index.visible, (0, -index.visible.shape[1] % together)).unflatten(1, (-1, together)).amax(2)


def _tiles(x: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], block: list[int]) -> Tiles:
    return Tiles(x, shape, strides, block, gl.NVMMASharedLayout.get_default_for(block, ELEMENT[x.dtype]))


def _prepared(operands: Operands, relu: bool) -> Launch:
    q, k, weights, seen, key_scales, scores = operands
    batch, heads, queries, width = q.shape
    size = q.element_size()
    config = IndexConfig(heads, SLOTS[size], relu, 32 // size)
    turned = q.transpose(1, 2)
    tiles = -(-queries // config.queries)
    segments, length = segments_of(-(-k.shape[2] // TILE.value), batch * tiles, multiprocessors(q.device))
    items = batch * tiles * segments
    arguments = (
        _tiles(q, turned.shape, turned.stride(), [1, config.queries, heads, width]),
        _tiles(k, k.shape, k.stride(), [1, 1, TILE.value, width]),
        *(weights, seen, key_scales, scores, queries, k.shape[2], scores.stride(1), tiles, segments, length, items),
    )
    return Launch(_kernel, items, arguments, (config,))

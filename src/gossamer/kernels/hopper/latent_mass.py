"""Where all heads look among chosen latents: their probabilities, made from the log-sum-exp, summed over the heads.

64 heads of a query stay in shared memory while gathered tiles of its latents pass by. Two consumer warpgroups take
tiles in turns, each from a place of its own: where one makes probabilities, the other multiplies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier, warpgroup_mma_wait

from ..chosen import Heads
from ..devices import made_current
from .descriptors import addressable
from .latent_ring import (
    COPIED,
    REGISTERS,
    SCORES,
    VECTOR,
    WARPS,
    Latents,
    gather,
    gathered,
    latents_in_memory,
    products,
)
from .launch import Launch, Operands, launch
from .ring import LOG2E, TILE, opaque, settle, turns_of


class Queries(NamedTuple):
    """Where queries begin, and how far apart they, their heads and sequences lie, in vectors of 16 bytes."""

    pointer: gl.tensor
    batch: gl.tensor
    head: gl.tensor
    query: gl.tensor


class Work(NamedTuple):
    """Every query, with every 64 of its heads, is an item."""

    heads: gl.tensor
    queries: gl.tensor
    places: gl.tensor
    parts: gl.tensor
    items: gl.tensor


class Item(NamedTuple):
    """A query of all sequences laid end to end, and the first of its heads."""

    row: gl.tensor
    batch: gl.tensor
    query: gl.tensor
    head: gl.tensor


@gluon.jit
def _item(turn, work):
    number = gl.program_id(0) + turn * gl.num_programs(0)
    row = number // work.parts
    return Item(row, row // work.queries, row % work.queries, number % work.parts * TILE)


@gluon.jit
def _tiles_of(work):
    """Tiles of a query's places, as many for both consumers."""
    return gl.cdiv(work.places, 2 * TILE) * 2


@gluon.jit
def _placed(places, item, tile, work, layout: gl.constexpr):
    """(latents at a tile of a query's places, -1 where none stands; the places)."""
    place = tile * TILE + gl.arange(0, TILE, layout)
    row = places + item.row.to(gl.int64) * work.places
    return gl.load(row + place, mask=place < work.places, other=-1), place


@gluon.jit
def _producer(q, latents, places, work, room):
    q_halves, q_rotary, q_full, q_empty = room[0]
    halves, rotary, full, empty = room[1]
    rows: gl.constexpr = gl.SliceLayout(1, COPIED)
    pairs = 0
    for turn in range(turns_of(work)):
        item = _item(turn, work)
        mbarrier.wait(q_empty.index(0), (turn & 1) ^ 1)
        head = item.head + gl.arange(0, TILE, rows)
        own = Latents(q.pointer + item.query.to(gl.int64) * q.query * VECTOR, q.head, q.batch)
        gather(own, item.batch, head, head < work.heads, q_halves, q_rotary, 0)
        async_copy.mbarrier_arrive(q_full.index(0), increment_count=False)
        entries, _ = _placed(places, item, 0, work, rows)
        for tile in range(_tiles_of(work)):
            next_entries, _ = _placed(places, item, tile + 1, work, rows)
            mbarrier.wait(empty.index(tile & 1), ((pairs + tile // 2) & 1) ^ 1)
            gather(latents, item.batch, entries, entries >= 0, halves, rotary, tile & 1)
            async_copy.mbarrier_arrive(full.index(tile & 1), increment_count=False)
            entries = next_entries
        pairs += _tiles_of(work) // 2
    settle()


@gluon.jit
def _consumer(lse, places, mass, work, unit, room, c: gl.constexpr):
    q_halves, q_rotary, q_full, q_empty = room[0]
    halves, rotary, full, empty = room[1]
    pairs = 0
    for turn in range(turns_of(work)):
        item = _item(turn, work)
        head = item.head + gl.arange(0, TILE, gl.SliceLayout(1, SCORES))
        exists = head < work.heads
        norm = lse + (item.batch.to(gl.int64) * work.heads + head) * work.queries + item.query
        norm = gl.load(norm, mask=exists, other=float("-inf")) * LOG2E
        looks = gl.expand_dims(norm > float("-inf"), 1)  # who sees nothing looks nowhere
        out = mass + ((item.head // TILE).to(gl.int64) * (work.items // work.parts) + item.row) * work.places
        gathered(q_full.index(0), turn & 1)
        for pair in range(_tiles_of(work) // 2):
            entry, place = _placed(places, item, 2 * pair + c, work, gl.SliceLayout(0, SCORES))
            gathered(full.index(c), (pairs + pair) & 1)
            # Addresses that the compiler knew would be kept in more registers than there are.
            first, here = opaque(gl.to_tensor(0)), opaque(gl.to_tensor(c))
            heads = (q_halves.index(first), q_halves.index(first + 1), q_rotary.index(first))
            s = products(heads, (halves.index(2 * here), halves.index(2 * here + 1), rotary.index(here)))
            s = warpgroup_mma_wait(0, deps=(s,))
            mbarrier.arrive(empty.index(c), count=1)
            p = gl.exp2(gl.where(looks, s * unit - gl.expand_dims(norm, 1), float("-inf")))
            gl.store(out + place, gl.where(entry >= 0, gl.sum(p, 0), 0.0), mask=place < work.places)
        mbarrier.arrive(q_empty.index(0), count=1)
        pairs += _tiles_of(work) // 2
    settle()


@gluon.jit(do_not_specialize=["heads", "queries", "places", "parts", "items"])
def _kernel(
    q, q_batch, q_head, q_query, latents, latent_row, latent_batch, lse, chosen, mass,
    heads, queries, places, parts, items, unit,
):  # fmt: skip
    dtype: gl.constexpr = q.dtype.element_ty
    room = (latents_in_memory(dtype, 1, 0, 2), latents_in_memory(dtype, 2, 0, 1))  # queries are as wide as latents
    work = Work(heads, queries, places, parts, items)
    latents = Latents(latents, latent_row, latent_batch)
    gl.warp_specialize(
        [
            (_consumer, (lse, chosen, mass, work, unit, room, 0)),
            (_consumer, (lse, chosen, mass, work, unit, room, 1)),
            (_producer, (Queries(q, q_batch, q_head, q_query), latents, chosen, work, room)),
        ],
        WARPS,
        REGISTERS,
    )


def latent_mass(heads: Heads) -> Tensor:
    """float32 [B, Q, n], as `MassRoad` says, of latents 576 wide."""
    q, latents = addressable(heads.q), addressable(heads.k)
    places = heads.places.contiguous()
    parts = torch.empty(-(-q.shape[1] // TILE.value), *places.shape, dtype=torch.float32, device=q.device)
    if parts.numel():
        with made_current(q.device):
            launch(_prepared, (q, latents, heads.lse.contiguous(), places, parts), heads.scale)
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _prepared(operands: Operands, scale: float) -> Launch:
    q, latents, lse, places, mass = operands
    batch, heads, queries, _ = q.shape
    items = batch * queries * len(mass)
    own, others = ([x // VECTOR.value for x in each.stride()[:3]] for each in (q, latents))
    arguments = (q, *own, latents, others[2], others[0], lse, places, mass)
    numbers = heads, queries, places.shape[2], len(mass), items, scale * LOG2E.value
    return Launch(_kernel, items, (*arguments, *numbers), ())

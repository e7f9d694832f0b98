"""What the sweeping kernels share: the order of the work, what a tile's rows see, and a ring that a team shares."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..devices import multiprocessors
from ..spans import apart
from .configs import SweepConfig
from .descriptors import tiles
from .division import Divisor, divisor, quotient
from .launch import heads_cached
from .operands import Diagonal, Segment
from .ring import TILE, phase, slot


class Work(NamedTuple):
    """`items` in all: every unit (a head, or what else lies side by side) has `blocks`, which stand heaviest first."""

    items: gl.tensor
    blocks: gl.tensor
    section: Divisor
    """Units of which the L2 cache holds everything that their items sweep over."""
    last: Divisor
    """Units of the last section, which may be fewer."""
    stretch: Divisor
    """Items of a section."""


class Place(NamedTuple):
    """Where a tile of rows stands, and the key head that its head belongs to."""

    batch: gl.tensor
    head: gl.tensor
    key_head: gl.tensor
    row: gl.tensor


class Shape(NamedTuple):
    """Counts of the query tensor, from which a query tile's place follows."""

    heads: Divisor
    repeats: Divisor
    """Query heads of a key head."""
    queries: gl.tensor


class Edges(NamedTuple):
    """Where what each row sees of `count` columns begins and ends: read, or worked out where `begin` is None.

    Then row i sees columns i + shift - breadth + 1 ... i + shift, as far as they exist.
    """

    begin: gl.tensor
    end: gl.tensor
    shift: gl.tensor
    breadth: gl.tensor
    count: gl.tensor
    apart: gl.tensor
    """From what is read for a sequence to what is read for the next: 0 where all share one table."""


class Run(NamedTuple):
    """Keys and values as tiles in memory, and what each query sees of them."""

    k: gl.tensor
    v: gl.tensor
    edges: Edges


TURNS, SHORTEST_SHARE, BEGINNING = 4, 8, 4
"""Where what is swept over is split: items that a multiprocessor gets at most, tiles that a share has at least, and
the tiles that could be swept over in the time that an item takes to begin and to end."""

WORK = (
    *("items", "blocks", "section", "section_reciprocal"),
    *("last", "last_reciprocal", "stretch", "stretch_reciprocal"),
)
HEADS = ("heads", "heads_reciprocal", "repeats", "repeats_reciprocal")
NUMBERS = ("shift", "breadth", "columns", "apart", *WORK, "scale")
"""Arguments of every sweeping kernel that none is compiled anew for."""


class Reach(NamedTuple):
    """What a tile's rows see: row r sees columns begin[r] ... end[r] - 1, and neither falls from row to row."""

    first_begin: gl.tensor
    last_begin: gl.tensor
    first_end: gl.tensor
    last_end: gl.tensor
    begin: gl.tensor
    end: gl.tensor


@builtin
def as_a_team(consume, given, produce, brought, config, *, _semantic=None, _generator=None) -> None:
    """Runs `produce(brought, config)` in one warp, and `consume(given, config, i)` in the i-th of the team's others.

    Python runs it while Triton compiles: a jitted function cannot make a list whose length it is told.
    """
    team = config.value.team
    parts = [(consume, (given, config, gl.constexpr(i))) for i in range(team.consumers)]
    parts.append((produce, (brought, config)))
    gl.warp_specialize(parts, team.warps, team.registers, _semantic=_semantic, _generator=_generator)


@gluon.jit
def barriers_of(config: gl.constexpr):
    """The barriers of a team, in one piece: what a warpgroup is handed, it keeps in registers."""
    OWN: gl.constexpr = config.own
    SLOTS: gl.constexpr = config.slots
    TAKERS: gl.constexpr = config.takers
    made = gl.allocate_shared_memory(gl.int64, [2 * OWN + 2 * SLOTS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2 * OWN + SLOTS):
        mbarrier.init(made.index(i), count=1)
    for i in gl.static_range(SLOTS):
        mbarrier.init(made.index(2 * OWN + SLOTS + i), count=TAKERS)
    return made


@gluon.jit
def own_full(bars, i, config: gl.constexpr):
    """The barrier that says that own tile i is there."""
    return bars.index(i)


@gluon.jit
def own_empty(bars, i, config: gl.constexpr):
    """The barrier that says that own tile i is needed no more."""
    OWN: gl.constexpr = config.own
    return bars.index(OWN + i)


@gluon.jit
def full(bars, i, config: gl.constexpr):
    """The barrier that says that the ring's i-th tile is there."""
    FIRST: gl.constexpr = 2 * config.own
    return bars.index(FIRST + slot(i, config.slots))


@gluon.jit
def empty(bars, i, config: gl.constexpr):
    """The barrier that says that nobody needs what the i-th tile of the ring takes the place of."""
    FIRST: gl.constexpr = 2 * config.own + config.slots
    return bars.index(FIRST + slot(i, config.slots))


@gluon.jit
def work_given(
    items, blocks, section, section_reciprocal, last, last_reciprocal, stretch, stretch_reciprocal,
):  # fmt: skip
    """The work that a kernel was given one number at a time, as `work_of` has them."""
    sections = Divisor(section, section_reciprocal), Divisor(last, last_reciprocal)
    return Work(items, blocks, *sections, Divisor(stretch, stretch_reciprocal))


@gluon.jit
def turns_of(work):
    """How many items this program takes."""
    programs = gl.num_programs(0)
    rounds = work.items // programs
    return rounds + (_item(rounds) < work.items).to(gl.int32)


@gluon.jit
def _item(turn):
    """Every other round of the programs runs backwards, so that none always gets the heavier items."""
    program, programs = gl.program_id(0), gl.num_programs(0)
    return turn * programs + gl.where(turn % 2 == 0, program, programs - 1 - program)


@gluon.jit
def unit_and_block(turn, work, config: gl.constexpr):
    """This program's item of a turn: a section's units lie side by side, each at the same block.

    Where consumers take turns, memory is what they wait for: the last items come first, for what they sweep over is
    what the launch before has swept over last, and may still be in the L2 cache.
    """
    IN_TURN: gl.constexpr = config.in_turn
    item = _item(turn)
    if IN_TURN:
        item = work.items - 1 - item
    return placed(item, work)


@gluon.jit
def placed(item, work):
    """(unit, block) of an item."""
    section = quotient(item, work.stretch)
    first = section * work.stretch.value
    short = work.items - first < work.stretch.value
    size = gl.where(short, work.last.value, work.section.value)
    reciprocal = gl.where(short, work.last.reciprocal, work.section.reciprocal)
    block = quotient(item - first, Divisor(size, reciprocal))
    return section * work.section.value + item - first - block * size, block


@gluon.jit
def query_place(turn, work, shape, consumer: gl.constexpr, config: gl.constexpr):
    """A consumer's query tile of an item; late queries come first, which see the most where the past grows."""
    CONSUMERS: gl.constexpr = config.team.consumers
    HEADS: gl.constexpr = config.team.by_heads
    IN_TURN: gl.constexpr = config.in_turn
    unit, block = unit_and_block(turn, work, config)
    block = work.blocks - 1 - block
    if HEADS:
        head, row = unit * CONSUMERS + consumer, block * TILE
    elif IN_TURN:
        head, row = unit, block * TILE
    else:
        head, row = unit, (block * CONSUMERS + consumer) * TILE
    batch = quotient(head, shape.heads)
    head -= batch * shape.heads.value
    return Place(batch, head, quotient(head, shape.repeats), row)


@gluon.jit
def team_row_of(place, consumer: gl.constexpr, config: gl.constexpr):
    """The first row that the team of a consumer's tile works on."""
    ALIKE: gl.constexpr = config.team.by_heads or config.in_turn
    return place.row if ALIKE else place.row - consumer * TILE


@gluon.jit
def result_of(place, consumer: gl.constexpr, config: gl.constexpr):
    """Where a consumer's results go: where they take turns, each has a tile of its own among the results."""
    STEP: gl.constexpr = config.step
    if STEP == 1:
        return place
    else:
        return Place(place.batch, place.head, place.key_head, place.row * STEP + consumer * TILE)


@gluon.jit
def begin_of(edges, batch, row):
    """The first column that a row of a sequence sees, for one row or many."""
    if edges.begin is None:
        return gl.minimum(gl.maximum(row + (edges.shift - edges.breadth + 1), 0), edges.count)
    else:
        return gl.load(edges.begin + (batch * edges.apart + row))


@gluon.jit
def end_of(edges, batch, row):
    """One more than the last column that a row of a sequence sees, for one row or many."""
    if edges.begin is None:
        return gl.minimum(gl.maximum(row + (edges.shift + 1), 0), edges.count)
    else:
        return gl.load(edges.end + (batch * edges.apart + row))


@gluon.jit
def span_of(edges, batch, row, rows: gl.constexpr, count):
    """(begin, end) of the columns that `rows` rows from `row` on, of `count` in all, see taken together."""
    low = begin_of(edges, batch, row)
    return low, gl.maximum(low, end_of(edges, batch, gl.minimum(row + rows, count) - 1))


@gluon.jit
def reach_of(edges, place, count, layout: gl.constexpr):
    """The reach of the 64 rows from a place on; rows at `count` or beyond do as the last one."""
    last = gl.minimum(place.row + TILE, count) - 1
    first = gl.minimum(place.row, last)
    rows = gl.minimum(place.row + gl.arange(0, TILE, gl.SliceLayout(1, layout)), last)
    return Reach(
        begin_of(edges, place.batch, first),
        begin_of(edges, place.batch, last),
        end_of(edges, place.batch, first),
        end_of(edges, place.batch, last),
        begin_of(edges, place.batch, rows),
        end_of(edges, place.batch, rows),
    )


@gluon.jit
def seen(p, reach, column, otherwise: gl.constexpr):
    """p [64, 64 or fewer] where its row sees its column, counted from `column`, else what it is otherwise.

    A thread holds columns 8 i + 2 (lane % 4) + {0, 1}: the bounds take the lane's part and masks compare constants.
    Most tiles that are seen partly are so at one side alone.
    """
    layout: gl.constexpr = p.type.layout
    COLUMNS: gl.constexpr = p.shape[1]
    columns = gl.arange(0, COLUMNS, gl.SliceLayout(0, layout))
    lane = column + gl.expand_dims(columns & 6, 0)
    rest = gl.expand_dims(columns & ~6, 0)
    if column < reach.last_begin:
        p = gl.where(rest >= gl.expand_dims(reach.begin, 1) - lane, p, otherwise)
    if column + COLUMNS > reach.first_end:
        p = gl.where(rest < gl.expand_dims(reach.end, 1) - lane, p, otherwise)
    return p


@gluon.jit
def pass_over(bars, start, stop, config: gl.constexpr):
    """Hands tiles back unread, once they have come: else one warpgroup could be a lap ahead of another."""
    for n in range(0, stop - start):  # Triton 3.6 drops a carried variable that is only the bound of another loop
        i = start + n
        mbarrier.wait(full(bars, i, config), phase(i, config.slots))
        mbarrier.arrive(empty(bars, i, config), count=1)


@gluon.jit
def own_turns(start, stop, consumer: gl.constexpr, config: gl.constexpr):
    """(tiles that the first of a consumer's turns comes after `start`, how many it has) of the ring's start ... stop.

    The turns go on from item to item, so that a consumer never waits for a tile that is a lap ahead: the ring holds
    more tiles than there are consumers.
    """
    STEP: gl.constexpr = config.step
    if STEP == 1:
        return 0, stop - start
    else:
        first = (consumer + (STEP - 1) * start) % STEP  # so that start + first is, in turns, its number
        return first, gl.maximum(stop - start - first + STEP - 1, 0) // STEP


@gluon.jit
def buffers(descriptor, count: gl.constexpr):
    """Shared memory for `count` tiles of a tensor."""
    shape: gl.constexpr = descriptor.block_shape
    return gl.allocate_shared_memory(
        descriptor.dtype, [count, shape[0], shape[1], shape[2], shape[3]], descriptor.layout
    )


@gluon.jit
def words_of(x):
    """An operand in registers [64, width], 16 bits a number, as words of two neighbours [64, width / 2]."""
    twice = gl.inline_asm_elementwise(
        "{ mov.b32 $0, $2; mov.b32 $1, $2; }", "=r,=r,r", [x], dtype=gl.int32, is_pure=True, pack=2
    )
    return gl.reshape(twice, (x.shape[0], x.shape[1] // 2, 2)).split()[0]


@gluon.jit
def operand_of(words, dtype: gl.constexpr, layout: gl.constexpr):
    """The operand whose words these are; costs nothing."""
    twice = gl.reshape(gl.join(words, words), (words.shape[0], words.shape[1] * 2))
    twice = gl.convert_layout(twice, layout)
    if dtype == gl.bfloat16:
        return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r,r", [twice], dtype=gl.bfloat16, is_pure=True, pack=2)
    else:
        return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r,r", [twice], dtype=gl.float16, is_pure=True, pack=2)


@gluon.jit
def renewed(words):
    """The same words, as the compiler cannot know: for operands in registers that a loop only reads.

    ptxas 12.8 may give the registers of such an operand of a matrix instruction away before the loop's next round,
    unless the loop itself may define it. `launch` gives the grid one row, and nobody tells ptxas that this branch is
    never taken.
    """
    if gl.program_id(1) != 0:
        words = gl.inline_asm_elementwise("not.b32 $0, $1;", "=r,r", [words], dtype=gl.int32, is_pure=False, pack=1)
    return words


@lru_cache(maxsize=256)
def shares_of(items: int, swept: int, device: torch.device) -> int:
    """Into how many shares `swept` tiles should be cut, so that few items with much to sweep over fill the GPU.

    Programs take items one after the other: the last round is to be as full as the others.
    """
    programs = multiprocessors(device)
    most = max(1, min(-(-TURNS * programs // items), swept // SHORTEST_SHARE))
    return min(range(1, most + 1), key=lambda shares: -(-items * shares // programs) * (swept / shares + BEGINNING))


def work_of(units: int, blocks: int, cached: int) -> tuple[int, ...]:
    """What kernels take as their work; of so many units the L2 cache holds all that their items sweep over."""
    section = min(units, cached)
    last = units % section or section
    return units * blocks, blocks, *divisor(section), *divisor(last), *divisor(section * blocks)


def query_work(config: SweepConfig, q: Tensor, segments: Sequence[Segment]) -> tuple[int, ...]:
    """What kernels take as their work where a team owns query tiles and sweeps over the segments."""
    team, (batch, heads, queries, _) = config.team, q.shape
    repeats = heads // segments[0].k.shape[1]
    cached = heads_cached(*(x for each in segments for x in (each.k, each.v))) * repeats // team.heads_together
    return work_of(batch * heads // team.heads_together, -(-queries // config.rows), cached)


def edges_of(start: Tensor, stop: Tensor, diagonal: Diagonal | None, columns: int) -> tuple[object, ...]:
    """What kernels take as edges: numbers alone for a plain band, which say all that the tables do."""
    return (start, stop, 0, 0, columns, apart(start)) if diagonal is None else (None, None, *diagonal, columns, 0)


def runs_of(segments: Sequence[Segment], rows: int, width: int, value_width: int) -> tuple[object, ...]:
    """What kernels take as one run or two; of the second, tables alone, also where it is a plain band."""
    one, *others = segments
    first = edges_of(one.start, one.stop, one.diagonal, one.k.shape[2])
    runs = [(tiles(x.k, rows, width), tiles(x.v, rows, value_width)) for x in segments]
    second = (*runs[1], others[0].start, others[0].stop) if others else (None,) * 4
    return *runs[0], *first, *second

"""What each program of a decoding launch does, as tables on the device that many steps of decoding share.

Each term of a plan becomes a few numbers: a run of a progression (a window, every n-th key, sinks) or of a sorted list
of keys, whose ends a kernel finds from a query's position. No table knows a length, so none is made again while
sequences grow within one capacity.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...plan import Band, Blocks, Columns, Plan, Rows, resized
from ..captured import refuse_capture
from ..devices import multiprocessors
from ..head_runs import HeadRun, head_runs
from ..problem import Problem

MOST_QUERIES = 16
"""More queries read their keys often enough that a kernel for long rows is faster."""
WIDEST = 256
MOST_SPLITS = 128
AT_ONCE, BY_AND_BY = 3, 8
"""Programs a multiprocessor that runs are split into: such as run all at once, where there are not more runs than
that, and else so many that the last of them leave little idle."""

INTERPRETED = 8
"""Multiprocessors that Triton's interpreter is taken to have."""


def refuses(problem: Problem) -> str | None:
    """Why decoding cannot run the problem, for a person to read, or None where it can."""
    if problem.backward:
        return "decoding has no gradients"
    if problem.plan.queries > MOST_QUERIES:
        return f"there are {problem.plan.queries} queries; it decodes {MOST_QUERIES} at most"
    if problem.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"inputs are {problem.dtype}; it computes float32, bfloat16 and float16"
    if max(problem.width, problem.value_width) > WIDEST:
        return f"heads are {problem.width} and {problem.value_width} wide; it computes {WIDEST} at most"
    if problem.dropout:
        return "decoding has no dropout"
    if problem.within or problem.runs or problem.block:
        return "decoding takes lengths, and no sequences within bounds, runs or blocks from the device"
    if _has_blocks(problem.plan) or _has_blocks(at_capacity(problem.plan)):
        return "decoding has no blocks"
    return None


def _has_blocks(made: Plan) -> bool:
    return any(isinstance(term, Blocks) for group in made.groups for term in group.terms)


@dataclass(frozen=True)
class Tile:
    """What one step of a program takes, how many steps are in flight, and the warps that share them."""

    rows: int
    """Queries times heads, at most."""
    keys: int
    stages: int
    warps: int


def tile_of(width: int, value_width: int, element_size: int) -> Tile:
    """The tile for a key and a value of these widths: 32 KiB of them, so that three programs fit a multiprocessor."""
    keys = max(16, min(64, 2**15 // (padded(padded(width) + padded(value_width)) * element_size)))
    if element_size == 4:  # products without tensor cores: few rows, and more warps where each has keys enough
        return Tile(16, keys, stages=3, warps=8 if keys > 16 else 4)
    return Tile(32, keys, stages=3, warps=4)


def padded(size: int) -> int:
    """The next power of two, at least the 16 that a matrix product takes."""
    return 1 << max(size - 1, 15).bit_length()


class Header(NamedTuple):
    """The heads and the split of a program."""

    first_head: int
    heads: int
    key_head: int
    split: int
    splits: int


class Run(NamedTuple):
    """A term in numbers; as it stands, one that holds no key."""

    low: int = 0
    """Least distance of query and key."""
    high: int = 0
    step: int = 1
    """Of a progression of keys."""
    first: int = 0
    """Its first key; -1 where it is the one of the query's own residue."""
    last: int = -1
    """The last key of all."""
    listed: int = -1
    """Where the key list begins; -1 for a progression."""
    ranks: int = -1
    """Where a table begins that says how many keys of the list come before each position."""
    reach: int = -1
    """Where a table begins of the first and last key that each position may see; -1 where that is no matter."""
    modulus: int = 1
    """Distances must be multiples of it, or must not."""
    on_step: int = 1


@dataclass(frozen=True, eq=False)
class Programs:
    """The programs of one launch and how their runs are laid out; each program is a header and `terms` runs."""

    items: Tensor
    """int32 [programs, numbers]."""
    lists: Tensor
    """int32, what runs point into."""
    head_splits: Tensor
    """int32 [H], into how many splits each head's keys are cut."""
    splits: int
    """The most of them."""
    terms: int
    queries: int
    """Queries that share a tile."""
    rows: int
    """Rows of a tile: queries times the heads of a key head, padded."""
    has_lists: bool
    masked: bool
    """Whether some row of a tile may not see some key of it."""


def at_capacity(made: Plan) -> Plan:
    """The plan of the same patterns at a length that many steps of decoding share."""
    capacity = 1 << max(made.keys - 1, 0).bit_length()
    return resized(made, capacity, capacity)


@lru_cache(maxsize=64)
def programs(made: Plan, device: torch.device, batch: int, repeats: int, queries: int, tile: Tile) -> Programs:
    """As many programs as fill the device; kept for the last 64 problems."""
    refuse_capture(device)
    lists = _Lists()
    lanes = [lane for run in head_runs(made, repeats) for lane in _lanes(run, made.keys, tile, lists)]
    every = [term for lane in lanes for term in lane.terms]
    together = 1 if any(term.alone for term in every) else max(1, min(queries, tile.rows // repeats))
    times = batch * -(-queries // together)
    processors = INTERPRETED if device.type == "cpu" else multiprocessors(device)
    wanted = processors * (AT_ONCE if len(lanes) * times <= AT_ONCE * processors else BY_AND_BY)
    share = -(-sum(lane.tiles for lane in lanes) * times // wanted)  # tiles of a program
    terms = max(1, *(len(lane.terms) for lane in lanes))
    items, head_splits = [], np.zeros(made.heads, np.int32)
    for lane in lanes:
        splits = min(-(-lane.tiles // share), MOST_SPLITS)
        head_splits[lane.first_head : lane.first_head + lane.heads] = splits
        runs = [term.run for term in lane.terms] + [Run()] * (terms - len(lane.terms))
        for split in range(splits):
            header = Header(lane.first_head, lane.heads, lane.key_head, split, splits)
            items.append([*header, *itertools.chain(*runs)])
    return Programs(
        items=torch.tensor(items, dtype=torch.int32, device=device),
        lists=torch.from_numpy(lists.joined()).to(device),
        head_splits=torch.from_numpy(head_splits).to(device),
        splits=int(head_splits.max()),
        terms=terms,
        queries=together,
        rows=padded(max(lane.heads for lane in lanes) * together),
        has_lists=bool(lists.places),
        masked=together > 1 or any(term.run.modulus > 1 for term in every),
    )


@dataclass(frozen=True)
class _Lane:
    """Query heads of one key head that share a tile, and the tiles of keys that they see at most."""

    first_head: int
    heads: int
    key_head: int
    terms: list[_Term]
    tiles: int


def _lanes(run: HeadRun, capacity: int, tile: Tile, lists: _Lists) -> Iterator[_Lane]:
    terms = [_term(term, capacity, lists) for term in run.group.terms if not isinstance(term, Blocks)]
    tiles = max(1, -(-sum(term.most_keys for term in terms) // tile.keys))
    for number, key_head in enumerate(range(run.keys.start, run.keys.stop)):
        for some in range(0, run.repeats, tile.rows):
            first = run.queries.start + number * run.repeats + some
            yield _Lane(first, min(tile.rows, run.repeats - some), key_head, terms, tiles)


class _Lists:
    """Lists of numbers laid end to end, each once."""

    def __init__(self) -> None:
        self.places: dict[bytes, int] = {}
        self.parts: list[NDArray[np.int32]] = []

    def place(self, numbers: NDArray) -> int:
        """Where the list begins."""
        part = np.ascontiguousarray(numbers, dtype=np.int32).ravel()
        if part.tobytes() not in self.places:
            self.places[part.tobytes()] = sum(map(len, self.parts))
            self.parts.append(part)
        return self.places[part.tobytes()]

    def joined(self) -> NDArray[np.int32]:
        return np.concatenate([*self.parts, np.zeros(1, np.int32)])


@dataclass(frozen=True)
class _Term:
    run: Run
    most_keys: int
    """That one query may see."""
    alone: bool
    """Whether queries at neighbouring positions see keys that are no common run."""


def _term(term: Band | Columns | Rows, capacity: int, lists: _Lists) -> _Term:
    offsets = term.offsets.clip(-capacity, capacity)
    keys = None if isinstance(term, Band) else term.keys
    run = Run(offsets.low, offsets.high, last=capacity - 1, modulus=offsets.step, on_step=int(offsets.on_step))
    if keys is None and offsets.on_step:
        run = run._replace(step=offsets.step, first=-1, modulus=1)
    elif keys is not None and len(set(np.diff(keys).tolist())) < 2:
        step = int(keys[1] - keys[0]) if len(keys) > 1 else 1
        run = run._replace(step=step, first=int(keys[0]), last=int(keys[-1]))
    elif keys is not None:
        ranks = np.searchsorted(keys, np.arange(capacity + 1))
        run = run._replace(listed=lists.place(keys), ranks=lists.place(ranks))
    reach = _reach(term, capacity)
    if reach is not None:
        run = run._replace(reach=lists.place(reach))
    most_keys = min(-(-(run.high - run.low + 1) // run.step), capacity if keys is None else len(keys))
    return _Term(run, most_keys, alone=reach is not None or (run.first < 0 and run.step > 1))


def _reach(term: Band | Columns | Rows, capacity: int) -> NDArray[np.int64] | None:
    """The first and last key [capacity, 2] that a query at each position may see, where not all are alike."""
    if term.documents is None and not isinstance(term, Rows):
        return None
    positions, nothing = np.arange(capacity), (0, -1)
    reach = np.array([[0, capacity - 1]]).repeat(capacity, 0)
    if term.documents is not None:
        bounds = np.minimum([*term.documents, capacity], capacity)  # a document may end where no int32 reaches
        number = np.searchsorted(bounds[:-1], positions, "right") - 1
        reach = np.stack([bounds[number], bounds[number + 1] - 1], 1)
        reach[positions >= term.documents[-1]] = nothing
    if isinstance(term, Rows):
        reach[~np.isin(positions, term.queries)] = nothing
    return reach

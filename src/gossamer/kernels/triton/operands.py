"""What a kernel is told: tuples of pointers and numbers, which Triton takes apart by name."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..block_tables import BlockTable
from ..problem import Softmax
from ..spans import Span, apart

LOG2E = 1.4426950408889634


class Order(NamedTuple):
    """Places of a sequence in the order in which tiles take them; as they stand where `index` is None."""

    index: Tensor | None
    count: int


class Run(NamedTuple):
    """Place `i` of an order meets places `start[i] … stop[i] - 1` of the other order, which `index` tells.

    Sequences that have runs of their own have them `apart` places from one another.
    """

    start: Tensor
    stop: Tensor
    apart: int
    index: Tensor | None

    @staticmethod
    def of_queries(span: Span) -> Run:
        """The keys that each query sees."""
        return Run(span.start, span.stop, apart(span.start), span.keys)

    @staticmethod
    def of_keys(span: Span) -> Run:
        """The queries that see each key."""
        first, last = span.seen_by
        return Run(first, last, apart(first), span.queries)


class Table(NamedTuple):
    """A `BlockTable`: the blocks of each row of each layout."""

    starts: Tensor
    counts: Tensor
    blocks: Tensor
    tile: Tensor | None
    tiles: Tensor | None
    layout: Tensor
    order: Tensor
    rows: int
    batch: int
    """How far apart the layouts of neighbouring batch rows stand; 0 where they are alike."""

    @staticmethod
    def of(table: BlockTable, heads: int) -> Table:
        batch = heads if len(table.layout) > heads else 0
        return Table(
            table.starts, table.counts, table.blocks, table.tile, table.tiles, table.layout, table.order,
            table.starts.shape[1], batch,
        )  # fmt: skip


class Axes(NamedTuple):
    """Lengths of the axes, and the position of query 0; key 0 stands at 0."""

    queries: int
    keys: int
    offset: int


class Heads(NamedTuple):
    """Query heads of a batch, `repeats` of them to a key head."""

    batch: int
    count: int
    repeats: int


class Scores(NamedTuple):
    """From a product of query and key to a score in units of log 2, because exp2 is the cheapest exponential."""

    unit: float
    cap: float | None
    """Scores are `cap · tanh(unit · product)`, or `unit · product` where it is None."""
    scale: float
    """The derivative of a natural score by the product, but for the cap's slope."""

    @staticmethod
    def of(softmax: Softmax) -> Scores:
        if not softmax.softcap:
            return Scores(softmax.scale * LOG2E, None, softmax.scale)
        return Scores(softmax.scale / softmax.softcap, softmax.softcap * LOG2E, softmax.scale)


class Dropout(NamedTuple):
    """Which pairs are dropped: those whose hash is below the threshold."""

    seed: Tensor
    threshold: int
    factor: float
    """What the kept probabilities are multiplied with."""
    offset: int
    """Position of query 0."""
    heads: int
    """All query heads of a batch row."""
    first: int
    """The run's first query head among them."""

    @staticmethod
    def of(softmax: Softmax, offset: int, heads: int, first: int) -> Dropout | None:
        if softmax.seed is None or not softmax.dropout:
            return None
        threshold = int(softmax.dropout * 2.0**32)
        return Dropout(softmax.seed, threshold, 1.0 / (1.0 - softmax.dropout), offset, heads, first)


def crowded(scores: Scores, dropout: Dropout | None) -> bool:
    """Whether a kernel has a soft cap or dropout, which take registers."""
    return scores.cap is not None or dropout is not None

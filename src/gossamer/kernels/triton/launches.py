"""The launches for one run of heads: blocks first, then which spans go together, and what each kernel is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...plan import Blocks, Plan, Rows
from ..block_tables import LayoutTables, block_tables
from ..head_runs import HeadRun
from ..live_spans import live
from ..problem import Softmax
from ..rows import Matrix, Vector
from ..spans import Span, spans
from . import backward, forward
from .block_launches import BlockLaunches
from .configs import Kernel, config
from .gradients import Gradients
from .operands import Dropout, Heads, Order, Run, Scores, crowded

FULL = 256
"""Programs that keep any GPU busy; fewer are split where the work of each allows."""
FEWEST_TILES = 8
"""Of a split."""


@dataclass(frozen=True, eq=False)
class Pass:
    """Queries in an order, and every run of keys that they see in it."""

    queries: Order
    spans: tuple[Span, ...]

    def seeing(self, spans: Mapping[Span, Span]) -> Pass:
        """The same with other spans in the place of its own."""
        return Pass(self.queries, tuple(spans[span] for span in self.spans))

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(Run.of_queries(span) for span in self.spans)


class Launches:
    """The heads of one run with the keys and values that they use."""

    def __init__(self, run: HeadRun, plan: Plan, softmax: Softmax, q: Tensor, k: Tensor, v: Tensor):
        self.q, self.k, self.v = q[:, run.queries], k[:, run.keys], v[:, run.keys]
        found = spans(run.group, plan, q.device) if softmax.blocks is None else ()
        seen = {span: live(span, softmax) for span in found}
        self.spans = tuple(seen.values())
        self.heads = Heads(q.shape[0], self.q.shape[1], run.repeats)
        dropout = Dropout.of(softmax, plan.extent.queries.start, plan.heads, run.queries.start)
        self.shared = self.heads, Scores.of(softmax), dropout
        self.crowded = crowded(*self.shared[1:])
        self.blocks = self._blocks(run, plan, softmax)
        passes = _passes(found, plan.queries, met=self.blocks is not None)
        self.passes = [each.seeing(seen) for each in passes]

    @property
    def launches(self) -> int:
        """How many launches write each query's results, at most."""
        return len(self.passes) + (self.blocks is not None)

    @property
    def key_launches(self) -> int:
        """How many launches write each key's gradients, at most."""
        return len(self.spans) + (self.blocks is not None)

    def _blocks(self, run: HeadRun, plan: Plan, softmax: Softmax) -> BlockLaunches | None:
        """The launches for the group's blocks, of which a plan makes one term at most, or for those of a layout."""
        group, layout = run.group, softmax.blocks
        if layout is not None:
            tables = LayoutTables(layout, self.heads.batch, self.heads.count)
            return BlockLaunches(self.q, self.k, self.v, tables, *self.shared, softmax.within)
        for term in group.terms:
            if isinstance(term, Blocks):
                tables = block_tables(term, plan, self.q.device)
                tables = tables.of_heads(run.queries.start - group.first, run.queries.stop - group.first)
                return BlockLaunches(self.q, self.k, self.v, tables, *self.shared, softmax.within)
        return None

    def forward(self, out: Tensor, lse: Tensor, sinks: Tensor | None) -> None:
        """Writes the output and the log-sum-exp of every query."""
        if self.blocks is not None:
            self.blocks.forward(out, lse, sinks)
        tensors = *map(Matrix.of, (self.q, self.k, self.v, out)), Vector.of(lse), sinks
        for number, each in enumerate(self.passes, int(self.blocks is not None)):
            constants = self._constants("forward") | {"RUNS": len(each.spans), "CONTINUES": number > 0}
            grid = (_tiles(each.queries.count, constants["QUERIES"]) * self.heads.batch * self.heads.count,)
            _launch(forward.forward, grid, (*tensors, each.queries, each.runs, *self.shared), constants)

    def backward_queries(self, come: Gradients, dq: Tensor) -> None:
        """Writes the gradient of every query, and `deltas` for the keys."""
        if self.blocks is not None:
            self.blocks.backward_queries(come, dq)
        tensors = *map(Matrix.of, (self.q, self.k, self.v, come.out)), Vector.of(come.lse), Matrix.of(come.grad_out)
        grad_lse = None if come.grad_lse is None else Vector.of(come.grad_lse)
        tensors = *tensors, grad_lse, Matrix.of(dq), Vector.of(come.deltas)
        for number, each in enumerate(self.passes, int(self.blocks is not None)):
            constants = self._constants("backward_queries") | {"RUNS": len(each.spans), "ADDS": number > 0}
            grid = (_tiles(each.queries.count, constants["QUERIES"]) * self.heads.batch * self.heads.count,)
            _launch(backward.backward_queries, grid, (*tensors, each.queries, each.runs, *self.shared), constants)

    def backward_keys(self, come: Gradients, dk: Tensor, dv: Tensor, *, fresh: bool) -> None:
        """Writes the gradients of every key and value, or adds to them where they are not `fresh`."""
        if self.blocks is not None:
            self.blocks.backward_keys(come, dk, dv, adds=not fresh)
            fresh = False
        for span in sorted(self.spans, key=lambda span: span.keys is not None):
            splits = self._splits(span)
            if span.keys is None and splits == 1:
                self._backward_span(span, come, dk, dv, splits=1, adds=not fresh)
            else:
                if fresh:
                    _clear(dk, dv)
                shape = splits * self.heads.batch, dk.shape[1], span.key_count
                parts = [x.new_empty(*shape, x.shape[-1], dtype=torch.float32) for x in (dk, dv)]
                self._backward_span(span, come, *parts, splits=splits, adds=False)
                for total, part in zip((dk, dv), parts, strict=True):
                    _add(total, part.unflatten(0, (splits, self.heads.batch)).sum(0), span.keys)
            fresh = False
        if fresh:
            _clear(dk, dv)

    def _backward_span(self, span: Span, come: Gradients, dk: Tensor, dv: Tensor, *, splits: int, adds: bool) -> None:
        constants = self._constants("backward_keys") | {"ADDS": adds}
        tensors = *map(Matrix.of, (self.q, self.k, self.v)), Vector.of(come.lse), Matrix.of(come.grad_out)
        tensors = *tensors, Vector.of(come.deltas), Matrix.of(dk), Matrix.of(dv)
        orders = Order(span.keys, span.key_count), Run.of_keys(span)
        grid = self._key_programs(span), splits
        _launch(backward.backward_keys, grid, (*tensors, *orders, *self.shared, splits), constants)

    def _splits(self, span: Span) -> int:
        """Parts into which the queries of few keys are cut, so that they fill the GPU; 1 where they do anyway."""
        offsets, queries = span.term.offsets, span.query_count
        run = min(offsets.high - offsets.low + 1, queries) * self.heads.repeats
        tiles = run // self._constants("backward_keys")["QUERIES"]
        return max(1, min(FULL // max(self._key_programs(span), 1), tiles // FEWEST_TILES))

    def _key_programs(self, span: Span) -> int:
        tiles = _tiles(span.key_count, self._constants("backward_keys")["KEYS"])
        return tiles * self.heads.batch * self.k.shape[1]

    def _constants(self, kernel: Kernel) -> dict[str, int]:
        """What is fixed when a kernel is compiled."""
        width, value_width = self.q.shape[-1], self.v.shape[-1]
        tile = config(kernel, self.q.dtype, max(width, value_width), crowded=self.crowded)
        return {
            "WIDTH": width, "VALUE_WIDTH": value_width, "QUERIES": tile.queries, "KEYS": tile.keys,
            "num_warps": tile.warps, "num_stages": tile.stages,
        }  # fmt: skip


def _tiles(count: int, size: int) -> int:
    return -(-count // size)


def _launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[object, ...], constants: dict[str, int]) -> None:
    """Runs as many programs as there are, which may be none."""
    if 0 not in grid:
        kernel[grid](*arguments, **constants)


@lru_cache(maxsize=64)
def _passes(found: tuple[Span, ...], queries: int, met: bool) -> tuple[Pass, ...]:
    """Spans by the order of their queries, one that holds all queries first, unless these were all met before."""
    orders: dict[object, list[Span]] = {}
    for span in found:
        rows = span.term.queries.tobytes() if isinstance(span.term, Rows) else None
        orders.setdefault(None if span.queries is None else (rows, span.term.offsets.step), []).append(span)
    passes = [_pass(each) for each in orders.values()]
    passes.sort(key=lambda each: (each.queries.count < queries, each.queries.index is not None))
    if not met and (not passes or passes[0].queries.count < queries):
        passes.insert(0, Pass(Order(None, queries), ()))  # what a query has that nothing else writes
    return tuple(passes)


def _pass(found: Iterable[Span]) -> Pass:
    first, *_ = found = tuple(found)
    return Pass(Order(first.queries, first.query_count), found)


def _add(total: Tensor, part: Tensor, keys: Tensor | None) -> None:
    """Adds the gradients of distinct keys."""
    if keys is None:
        total += part
    else:
        total.index_add_(2, keys, part.to(total.dtype))


def _clear(dk: Tensor, dv: Tensor) -> None:
    dk.zero_()
    dv.zero_()

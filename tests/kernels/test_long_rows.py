"""Long rows of blocks in parts: every visible pair is in one table of two, and attention over both is exact."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gossamer.kernels.block_tables import BlockTable, LayoutTables, block_tables, heaviest_first
from gossamer.kernels.problem import Layout
from gossamer.patterns import Blocks, GlobalBlocks, Pattern, PerHead, RandomBlocks, Window
from gossamer.plan import Blocks as BlockTerm
from gossamer.plan import plan
from tests.checks import Setting, draw

pytest.importorskip("triton", reason="the Hopper backend's modules name Triton's types")

from gossamer.kernels.hopper import backend, block_pass, long_passes, long_rows
from gossamer.kernels.hopper.long_rows import Crew, Cut, cut, parts_of
from tests.kernels import columns_in_torch, row_parts_in_torch
from tests.kernels.test_block_tables import CPU, pairs
from tests.kernels.test_hopper import check_drawn, repeated, softmax_of

SIZE, COUNT = 64, 7
LENGTH = SIZE * COUNT - 20
"""The last block, which is global, is shorter than the others."""


def both(*numbers: int, size: int = SIZE) -> Pattern:
    """Blocks that see all and are seen by all."""
    return GlobalBlocks(size, numbers) | GlobalBlocks(size, numbers).T


ENDS = both(0, COUNT - 1)
PATTERNS: dict[str, Pattern] = {
    "one layout": ENDS,
    "a layout a head": ENDS | PerHead([(RandomBlocks(SIZE, 1, seed), 1) for seed in range(4)]),
    "partial": (ENDS | PerHead([(RandomBlocks(SIZE, 1, seed), 1) for seed in range(4)])) & ~Window(9),
    "heads that are long elsewhere": PerHead([(ENDS, 1), (both(2), 1), (Blocks(SIZE, np.eye(COUNT, dtype=bool)), 2)]),
    "rows alone": GlobalBlocks(SIZE, (1, 3)).T | Blocks(SIZE, np.eye(COUNT, dtype=bool)),
    "columns alone": GlobalBlocks(SIZE, (1, 3)) | Blocks(SIZE, np.eye(COUNT, dtype=bool)),
}


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rows are long from five blocks on, and have parts of two or more."""
    monkeypatch.setattr(long_rows, "SHORTEST_LONG_ROW", 4)
    monkeypatch.setattr(long_rows, "SHORTEST_PART", 2)
    monkeypatch.setattr(long_rows, "multiprocessors", lambda _: 132)
    long_rows._cut.cache_clear()  # these limits are none of what it is kept under
    yield
    long_rows._cut.cache_clear()


def held(found: Cut, lane: int, shape: tuple[int, int]) -> np.ndarray:
    """How often a cut table of a head holds each pair, its parts' pairs in the places of what they are copies of."""
    total = pairs(found.short, lane, shape)
    if found.long is not None:
        copied = found.long.copied.numpy()
        rows = pairs(found.long.table, lane, (len(copied), shape[1]))
        own = np.arange(len(copied)) % SIZE < shape[0] - copied // SIZE * SIZE  # behind the last there are copies of it
        np.add.at(total, copied[own], rows[own])
    return total


def _tensors(found: Cut) -> list[Tensor]:
    tables = [found.short] if found.long is None else [found.short, found.long, found.long.table]
    return [x for table in tables for x in table if isinstance(x, Tensor)]


@pytest.mark.parametrize("units", [1, 40, 4000])
@pytest.mark.parametrize("name", PATTERNS)
def test_both_sides_hold_each_visible_pair_once(short_limits: None, name: str, units: int) -> None:
    made = plan(PATTERNS[name], LENGTH, LENGTH, 4)
    for group in made.groups:
        (term,) = group.terms
        assert isinstance(term, BlockTerm)
        by_queries, by_keys = (cut(side, Crew(264, units, 1, LENGTH)) for side in block_tables(term, made, CPU))
        for found in (by_queries, by_keys):
            assert all(x.is_contiguous() for x in _tensors(found)), "kernels do not look at strides"
        for head in range(group.last - group.first):
            right = PATTERNS[name].for_head(group.first + head).dense_mask(LENGTH, LENGTH)
            np.testing.assert_array_equal(held(by_queries, head, (LENGTH, LENGTH)), right)
            np.testing.assert_array_equal(held(by_keys, head, (LENGTH, LENGTH)), right.T)


def table_of(*counts: int) -> BlockTable:
    """One layout, whose rows hold the first so many blocks."""
    held = torch.tensor([counts], dtype=torch.int32)
    blocks = torch.cat([torch.arange(count, dtype=torch.int32) for count in counts])
    starts = held.cumsum(1).int() - held
    return BlockTable(SIZE, starts, held, blocks, None, None, torch.zeros(1, dtype=torch.int32), heaviest_first(held))


def test_parts_are_rows_of_the_same_lists(short_limits: None) -> None:
    found = cut(table_of(2, 7, 3, 6), Crew(264, 1, 1, 4 * SIZE - 1))
    assert found.short.counts.tolist() == [[2, 0, 3, 0]] and found.short.order.tolist() == [[2, 0, 1, 3]]
    long = found.long
    assert long is not None
    assert long.places.tolist() == [1, 3] and long.edges.tolist() == [0, 3, 5]
    assert long.table.counts.tolist() == [[2, 2, 3, 3, 3]]
    assert long.table.blocks is found.short.blocks
    assert long.copied[:SIZE].tolist() == list(range(SIZE, 2 * SIZE))
    assert long.copied[-2:].tolist() == [4 * SIZE - 2] * 2


def test_what_is_short_or_common_stays() -> None:
    table = table_of(*[2] * 60, 64, 65)
    assert cut(table, Crew(264, 12, 1, 62 * SIZE)).long.places.tolist() == [61]
    assert cut(table, Crew(264, 10**6, 1, 62 * SIZE)) == Cut(table, None)
    assert cut(table, Crew(264, 12, 1, 62 * SIZE)) is cut(table, Crew(264, 12, 1, 62 * SIZE))


@pytest.mark.parametrize(
    ("longest", "units", "parts"),
    [
        ([1024, 1024], 12, [11, 11]),  # 264 parts for 264 streams
        ([256, 256], 48, [8, 8]),
        ([1024, 512, 100], 12, [13, 7, 2]),
        ([100], 264, [1]),
        ([65], 1, [4]),  # of 16 tiles at least
    ],
)
def test_parts_fill_the_rounds_of_the_streams(longest: list[int], units: int, parts: list[int]) -> None:
    assert parts_of(np.array(longest), Crew(264, units, 1, 0)).tolist() == parts


class DenseBlocks:
    """The kernels' entry points over dense matrices in float64: `aux` carries the log-sum-exp and delta as they are."""

    def __init__(self) -> None:
        self.aux: dict[int, tuple[Tensor, Tensor]] = {}
        self.apart: set[str] = set()
        """Which kernels ran over copies."""

    def forward(self, inputs, by_queries, out, lse, *, scale, within=None, sinks=None, copies=False) -> None:
        q, k, v = inputs
        self.apart |= {"forward"} if copies else set()
        mask = _mask(by_queries, q, k) & _inside(k, within)[..., None, :]
        if not copies:
            mask &= _inside(q, within)[..., None]
        scores = q.double() @ repeated(k, q).mT * scale
        found = torch.logsumexp(scores.masked_fill(~mask, -torch.inf), -1)
        if sinks is not None:
            found = torch.logaddexp(found, sinks.double()[:, None].expand_as(found))
        out.copy_(softmax_of(scores, mask, found) @ repeated(v, q))
        lse.copy_(found)

    def queries(self, inputs, results, by_queries, dq, aux, *, scale, within, copies=False) -> None:
        q, k, _ = inputs
        self.apart |= {"queries"} if copies else set()
        delta = (results.grad_out.double() * results.out.double()).sum(-1)
        delta = delta if results.grad_lse is None else delta - results.grad_lse.double()
        absent = results.lse == -torch.inf
        if not copies:
            absent = absent | ~_inside(q, within)
        self.aux[aux.data_ptr()] = results.lse.masked_fill(absent, torch.inf), delta.masked_fill(absent, 0.0)
        mask = _mask(by_queries, q, k) & _inside(k, within)[..., None, :]
        dscores, _ = self._dscores(inputs, mask, results.grad_out, aux, scale)
        dq.copy_(dscores @ repeated(k, q))

    def keys(self, inputs, grad_out, aux, by_keys, gradients, *, scale, within) -> None:
        q, k, _ = inputs
        self.apart |= {"keys"} if k.shape[2] != LENGTH else set()
        dscores, p = self._dscores(inputs, _mask(by_keys, k, q, q.shape[1]).mT, grad_out, aux, scale)
        for total, found in zip(gradients, (dscores.mT @ q.double(), p.mT @ grad_out.double()), strict=True):
            found = found.unflatten(1, (k.shape[1], -1)).sum(2)
            total.copy_(found.masked_fill(~_inside(k, within)[..., None], 0.0))

    def _dscores(self, inputs, mask, grad_out, aux, scale) -> tuple[Tensor, Tensor]:
        q, k, v = inputs
        lse, delta = self.aux[aux.data_ptr()]
        p = softmax_of(q.double() @ repeated(k, q).mT * scale, mask, lse)
        return p * (grad_out.double() @ repeated(v, q).mT - delta[..., None]) * scale, p


def _mask(table: BlockTable, own: Tensor, other: Tensor, heads: int | None = None) -> Tensor:
    """bool [1, H, rows, columns]."""
    shape = own.shape[2], other.shape[2]
    return torch.from_numpy(np.stack([pairs(table, head, shape) > 0 for head in range(heads or own.shape[1])]))[None]


def _inside(x: Tensor, within: Tensor | None) -> Tensor:
    """bool [B or 1, 1, N], which positions of x [B, H, N, D] belong to their sequence."""
    position = torch.arange(x.shape[2])
    if within is None:
        return torch.ones_like(position, dtype=torch.bool)[None, None]
    first, last = within.T[..., None, None]
    return (position >= first) & (position < last)


@pytest.fixture
def dense(short_limits: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[DenseBlocks]:
    kernels = DenseBlocks()
    for name, stand_in in {
        "blocks_forward": kernels.forward,
        "backward_queries": kernels.queries,
        "backward_keys": kernels.keys,
        "row_parts": row_parts_in_torch,
        "columns": columns_in_torch,
    }.items():
        monkeypatch.setattr(long_passes, name, stand_in)
    monkeypatch.setattr(block_pass, "packed", lambda table: table)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(backend, "_side_by_side", lambda works, *_, **__: [work() for work in works])
    block_pass._packed_tables.cache_clear()
    yield kernels
    block_pass._packed_tables.cache_clear()


SETTING = Setting(heads=4, queries=LENGTH, batch=2, width=8)
WITHIN = ((0, LENGTH), (30, 400), (70, 430), (200, 201), (90, 90))
OPTIONS: dict[str, dict[str, object]] = {
    "alone": {},
    "sinks": {"sinks": True},
    "within ends": {"batch": len(WITHIN), "within": WITHIN},
    "within ends, sinks, shared keys": {"batch": len(WITHIN), "within": WITHIN, "sinks": True, "key_heads": 2},
    "one key head, other widths": {"key_heads": 1, "width": 16, "value_width": 8},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", PATTERNS)
def test_long_rows_are_put_together_rightly(dense: DenseBlocks, name: str, options: str) -> None:
    check_drawn(draw(PATTERNS[name], replace(SETTING, **OPTIONS[options])))
    long = {"rows alone": {"forward", "queries"}, "columns alone": {"keys"}}
    assert dense.apart >= long.get(name, {"forward", "queries", "keys"})


def test_a_layout_of_run_time_stays_whole(dense: DenseBlocks) -> None:
    table = LayoutTables(Layout(torch.ones(1, 1, COUNT, COUNT, dtype=torch.bool), SIZE), 1, 1)
    found = block_pass.BlockPass(table, 1.0, None)
    assert found._cut(table.by_queries, Crew(264, 1, 1, LENGTH)) == Cut(table.by_queries, None)

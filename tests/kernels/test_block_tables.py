"""Block tables hold the plan's blocks, or a layout's, from both sides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gossamer.kernels.block_tables import BlockTable, BlockTables, LayoutTables, block_tables
from gossamer.kernels.problem import Layout
from gossamer.patterns import Blocks, Causal, Pattern, PerHead, RandomBlocks, Window
from gossamer.plan import Blocks as BlockTerm
from gossamer.plan import Plan, plan
from tests.patterns_list import CHECKERED

CPU = torch.device("cpu")
PATTERNS: dict[str, Pattern] = {
    "blocks": Blocks(32, CHECKERED),
    "small blocks": Blocks(5, CHECKERED),
    "full and partial": Blocks(32, CHECKERED) & ~Window(5),
    "random blocks": RandomBlocks(16, count=2, seed=1),
    "layouts": PerHead([(RandomBlocks(16, 2, seed), 1 + seed % 2) for seed in range(3)]),
    "partial layouts": PerHead([(RandomBlocks(32, 1, seed) & Causal() & ~Window(9), 1) for seed in range(3)]),
}
LENGTHS = [(136, 136), (50, 136), (136, 50), (1, 136), (160, 160)]


def pairs(table: BlockTable, lane: int, shape: tuple[int, int]) -> np.ndarray:
    """[rows' places, blocks' places] how often the table of a head holds each pair."""
    size, number = table.size, int(table.layout[lane])
    held = np.zeros([-(-length // size) * size for length in shape], dtype=int)
    rows = zip(table.starts[number].tolist(), table.counts[number].tolist(), strict=True)
    for row, (start, count) in enumerate(rows):
        blocks = table.blocks[start : start + count]
        assert (blocks.diff() > 0).all()
        for entry, block in enumerate(blocks.tolist(), start):
            tile = -1 if table.tile is None else int(table.tile[entry])
            mask = np.ones((size, size), int) if tile < 0 else table.tiles[tile].numpy()
            held[row * size : (row + 1) * size, block * size : (block + 1) * size] += mask
    return held[: shape[0], : shape[1]]


def tables(pattern: Pattern, queries: int, keys: int) -> list[tuple[BlockTables, int, int, Plan]]:
    heads = pattern.head_cuts[-1] if pattern.head_cuts else 2
    made = plan(pattern, queries, keys, heads)
    return [
        (block_tables(term, made, CPU), group.first, group.last, made)
        for group in made.groups
        for term in group.terms
        if isinstance(term, BlockTerm)
    ]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("sizes", LENGTHS, ids=str)
def test_both_sides_hold_each_visible_pair_once(name: str, sizes: tuple[int, int]) -> None:
    queries, keys = sizes
    for found, first, last, _ in tables(PATTERNS[name], queries, keys):
        for head in range(first, last):
            right = PATTERNS[name].for_head(head).dense_mask(queries, keys)
            np.testing.assert_array_equal(pairs(found.by_queries, head - first, (queries, keys)), right)
            np.testing.assert_array_equal(pairs(found.by_keys, head - first, (keys, queries)), right.T)


def test_the_heaviest_rows_come_first() -> None:
    ((found, *_),) = tables(Blocks(32, CHECKERED), 160, 160)
    assert found.by_queries.order.tolist() == [[4, 3, 0, 1, 2]]
    assert found.by_keys.counts.tolist() == [[2, 3, 2, 3, 2]]
    assert found.by_keys.order.tolist() == [[1, 3, 0, 2, 4]]


def test_of_heads_keeps_the_layouts_of_some() -> None:
    (found, _, _, _), *_ = tables(PATTERNS["layouts"], 136, 136)
    assert torch.equal(found.of_heads(0, 1).by_keys.layout, found.by_keys.layout[:1])


def test_tables_are_kept() -> None:
    made = plan(RandomBlocks(16, 2, 1), 64, 64, 2)
    term = made.groups[0].terms[0]
    assert block_tables(term, made, CPU) is block_tables(term, made, CPU)


SHAPES = {"one for all": (1, 1), "a layout a head": (1, 3), "a layout a sequence": (2, 1), "each its own": (2, 3)}


@pytest.mark.parametrize("name", SHAPES)
def test_a_layout_becomes_tables_of_both_sides(name: str) -> None:
    layout = torch.rand(*SHAPES[name], 5, 4, generator=torch.Generator().manual_seed(0)) < 0.4
    found = LayoutTables(Layout(layout, 16), batch=2, heads=3)
    full = layout.expand(2, 3, 5, 4).repeat_interleave(16, 2).repeat_interleave(16, 3).int().numpy()
    for table in (found.by_queries, found.by_keys):
        assert table.tile is None and table.tiles is None
        tensors = [x for x in table if isinstance(x, torch.Tensor)]
        assert all(x.dtype == torch.int32 and x.is_contiguous() for x in tensors)
    for batch in range(2):
        for head in range(3):
            lane = head if len(found.by_queries.layout) == 3 else batch * 3 + head
            np.testing.assert_array_equal(pairs(found.by_queries, lane, (80, 64)), full[batch, head])
            np.testing.assert_array_equal(pairs(found.by_keys, lane, (64, 80)), full[batch, head].T)

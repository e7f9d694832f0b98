"""Masks of partial blocks as words: every pair's bit stands where the thread that holds the pair looks for it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the module holds a kernel's functions")

from gossamer.kernels.block_tables import BlockTable
from gossamer.kernels.hopper.block_masks import packed


def table(size: int, tiles: torch.Tensor | None) -> BlockTable:
    nothing = torch.zeros(1, 1, dtype=torch.int32)
    return BlockTable(size, nothing, nothing, nothing[0], None, tiles, nothing[0], nothing)


@pytest.mark.parametrize("size", [64, 128])
def test_every_pair_has_its_bit(size: int) -> None:
    tiles = (torch.rand(3, size, size, generator=torch.Generator().manual_seed(0)) < 0.5).to(torch.uint8)
    words = packed(table(size, tiles)).tiles
    assert words is not None and words.dtype == torch.int32
    row, column = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    thread = (row // 16 * 8 + row % 8) * 4 + column // 2 % 4
    bit = column // 8 * 4 + row // 8 % 2 * 2 + column % 2
    for down in range(size // 64):
        for right in range(size // 64):
            part = tiles[:, 64 * down : 64 * down + 64, 64 * right : 64 * right + 64]
            assert torch.equal((words[:, down, right][:, thread] >> bit) & 1, part.int())


def test_whole_blocks_need_no_words() -> None:
    assert packed(table(64, None)).tiles is None

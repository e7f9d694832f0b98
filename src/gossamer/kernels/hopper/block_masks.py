"""Masks of partial blocks as the matrix instruction's threads hold them: 64 × 64 pairs are one word a thread.

A thread holds rows 16 w + 8 h + g of a tile (its warp w, g = lane / 4, h either) and columns 8 i + 2 (lane % 4) + b:
the bit of a pair is 4 i + 2 h + b, so that every test of a bit is a test of a constant one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..block_tables import BlockTable
from .ring import TILE

WORDS = gl.constexpr(128)
"""Words of a tile's mask: one for each thread of a warpgroup."""


def packed(table: BlockTable) -> BlockTable:
    """The table with its masks uint8 [T, size, size] as words, int32 [T, size / 64, size / 64, 128]."""
    if table.tiles is None:
        return table
    some = table.size // TILE.value
    parts = table.tiles.unflatten(2, (some, TILE.value)).unflatten(1, (some, TILE.value)).transpose(2, 3)
    threads = parts.reshape(-1, some, some, 4, 2, 8, 8, 4, 2).permute(0, 1, 2, 3, 5, 7, 6, 4, 8)  # w h g i q b
    return table._replace(tiles=_words(threads.reshape(-1, some, some, WORDS.value, 32)))


def _words(bits: Tensor) -> Tensor:
    """Words [...], int32, of bits [..., 32], 0 or 1, the first one least."""
    values = torch.ones(32, dtype=torch.int64, device=bits.device) << torch.arange(32, device=bits.device)
    totals = (bits.long() * values).sum(-1)
    return torch.where(totals >= 2**31, totals - 2**32, totals).int()


@gluon.jit
def masked(p, words, otherwise: gl.constexpr):
    """p [64, 64], a matrix instruction's result, where the mask that begins at `words` is set, else `otherwise`."""
    layout: gl.constexpr = p.type.layout
    rows = gl.expand_dims(gl.arange(0, TILE, gl.SliceLayout(1, layout)), 1)
    columns = gl.expand_dims(gl.arange(0, TILE, gl.SliceLayout(0, layout)), 0)
    thread = ((rows >> 4) * 8 + (rows & 7)) * 4 + ((columns >> 1) & 3)
    parts = gl.reshape(p, (4, 2, 8, 8, 4, 2))
    own = gl.max(gl.max(gl.max(gl.reshape(thread, (4, 2, 8, 8, 4, 2)), 5), 3), 1)  # the same in all of a thread
    word = gl.load(words + own)
    word = gl.expand_dims(gl.expand_dims(gl.expand_dims(word, 1), 3), 5)
    bit = (columns >> 3) * 4 + ((rows >> 3) & 1) * 2 + (columns & 1)
    bit = gl.convert_layout(gl.reshape(bit, (4, 2, 8, 8, 4, 2)), parts.type.layout)
    word = gl.convert_layout(word, parts.type.layout)
    parts = gl.where((word >> bit) & 1 != 0, parts, otherwise)
    return gl.convert_layout(gl.reshape(parts, (TILE, TILE)), layout)

"""Sizes of tiles by kernel, dtype and head width: data, so that a tuner can rewrite them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

Kernel = Literal["forward", "backward_queries", "backward_keys"]

WIDEST = 256
"""Of an index's heads, and of heads whose keys come out of buckets."""


@dataclass(frozen=True)
class Config:
    """Queries and keys of a tile, and how many warps and stages of loading work on it."""

    queries: int
    keys: int
    warps: int
    stages: int


# By the wider of the two head widths, up to and including. Everything fits the 99 KB of shared memory of a
# consumer card. Float32 has no tensor cores in IEEE precision: its tiles are bounded by registers.
HALF: dict[Kernel, dict[int, Config]] = {
    "forward": {
        64: Config(64, 64, 4, 3), 128: Config(64, 32, 4, 3), 256: Config(64, 16, 4, 3), 512: Config(32, 32, 8, 1),
    },
    "backward_queries": {
        64: Config(64, 32, 4, 3), 128: Config(64, 32, 4, 2), 256: Config(32, 16, 4, 2), 512: Config(32, 16, 8, 1),
    },
    "backward_keys": {
        64: Config(32, 64, 4, 2), 128: Config(32, 64, 4, 1), 256: Config(16, 32, 4, 2), 512: Config(16, 16, 8, 2),
    },
}  # fmt: skip
SINGLE: dict[Kernel, dict[int, Config]] = {
    "forward": {64: Config(32, 32, 4, 2), 128: Config(32, 32, 8, 1), 256: Config(16, 16, 8, 1)},
    "backward_queries": {64: Config(32, 32, 4, 2), 128: Config(32, 32, 8, 2), 256: Config(16, 16, 8, 2)},
    "backward_keys": {64: Config(32, 32, 4, 1), 128: Config(32, 32, 8, 1), 256: Config(16, 16, 8, 1)},
}
SINGLE_CROWDED: dict[Kernel, dict[int, Config]] = {
    "forward": SINGLE["forward"] | {64: Config(32, 32, 8, 2)},
    "backward_queries": SINGLE["backward_queries"] | {64: Config(32, 32, 8, 2)},
    "backward_keys": SINGLE["backward_keys"] | {64: Config(32, 32, 8, 1)},
}
"""With a soft cap or dropout besides, which take registers too."""

# Over blocks: what is faster where they are large, and what leaves registers for the masks of partial ones.
HALF_BLOCKS: dict[Kernel, dict[int, Config]] = HALF | {
    "backward_queries": HALF["backward_queries"] | {64: Config(64, 64, 4, 2)},
    "backward_keys": HALF["backward_keys"] | {128: Config(32, 64, 4, 2)},
}
CROWDED: dict[Kernel, dict[int, Config]] = HALF_BLOCKS | {
    "backward_keys": HALF["backward_keys"] | {128: Config(16, 64, 4, 2)},
}
"""With a soft cap or dropout besides."""
SINGLE_BLOCKS: dict[Kernel, dict[int, Config]] = SINGLE | {
    "backward_queries": SINGLE["backward_queries"] | {128: Config(32, 16, 8, 2)},
}


def widest(dtype: torch.dtype) -> int:
    """Up to which width of heads there are tiles. Float32 that is wider would not fit into registers."""
    return max((SINGLE if dtype == torch.float32 else HALF)["forward"])


def config(kernel: Kernel, dtype: torch.dtype, width: int, *, crowded: bool) -> Config:
    """The tile for a dtype and the wider of the two head widths; `crowded` by a soft cap or dropout."""
    single = SINGLE_CROWDED if crowded else SINGLE
    return _narrowest((single if dtype == torch.float32 else HALF)[kernel], width)


def block_config(kernel: Kernel, dtype: torch.dtype, width: int, size: int, *, crowded: bool) -> Config:
    """The same over blocks of `size`, a tile that divides them."""
    table = SINGLE_BLOCKS if dtype == torch.float32 else CROWDED if crowded else HALF_BLOCKS
    tile = _narrowest(table[kernel], width)
    return replace(tile, queries=min(tile.queries, size), keys=min(tile.keys, size))


def _narrowest(table: dict[int, Config], width: int) -> Config:
    return table[min(widest for widest in table if width <= widest)]


# Chunks are short: a program meets two or three tiles, so that it is other programs that hide its loads, and few
# registers are worth more than stages.
HASHED_HALF: dict[Kernel, dict[int, Config]] = {
    "forward": {64: Config(64, 32, 4, 1), 128: Config(64, 32, 4, 1), 256: Config(32, 32, 4, 2)},
    "backward_queries": {64: Config(64, 32, 4, 1), 128: Config(64, 32, 4, 1), 256: Config(32, 16, 8, 2)},
    "backward_keys": {64: Config(32, 64, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 32, 8, 2)},
}
HASHED_SINGLE: dict[Kernel, dict[int, Config]] = {
    "forward": {64: Config(32, 32, 4, 2), 128: Config(32, 32, 8, 2), 256: Config(16, 16, 8, 2)},
    "backward_queries": {64: Config(32, 32, 4, 2), 128: Config(32, 32, 8, 2), 256: Config(16, 16, 8, 3)},
    "backward_keys": {64: Config(32, 32, 8, 1), 128: Config(16, 32, 8, 1), 256: Config(16, 16, 8, 1)},
}

# Of an index: heads of all queries of a tile together, and keys. The queries stay, and the keys stream past them. On
# Hopper one matrix instruction takes 64 keys and 256 of the others, and reads least of the shared memory.
INDEX_HALF = {64: Config(256, 64, 4, 3), 128: Config(256, 64, 4, 2), 256: Config(64, 64, 4, 2)}
INDEX_SINGLE = {64: Config(64, 32, 8, 2), 128: Config(64, 32, 8, 2), 256: Config(64, 16, 8, 1)}
FEW_HEADS = 16
"""At most so many leave many sums to a tile, which take registers and shared memory on their way out."""


def index_config(dtype: torch.dtype, width: int, heads: int) -> Config:
    """The tile of an index's scores."""
    tile = _narrowest(INDEX_SINGLE if dtype == torch.float32 else INDEX_HALF, width)
    return replace(tile, queries=min(tile.queries, 128)) if heads <= FEW_HEADS else tile


# Of an index's lesson, by the width of what is multiplied; float32 heads of an index are 128 wide at most.
LESSON_MASS = {"half": {2**16: Config(64, 64, 4, 3)}, "single": {2**16: Config(32, 32, 4, 2)}}
LESSON_QUERIES = {
    "half": {64: Config(64, 64, 4, 2), 128: Config(64, 64, 8, 2), 256: Config(64, 32, 8, 2)},
    "single": {64: Config(32, 32, 8, 2), 128: Config(32, 32, 8, 2)},
}
LESSON_KEYS = {
    "half": {64: Config(32, 64, 4, 2), 128: Config(32, 64, 8, 2), 256: Config(32, 64, 8, 2)},
    "single": {64: Config(32, 32, 8, 1), 128: Config(32, 32, 8, 2)},
}


def lesson_config(table: dict[str, dict[int, Config]], dtype: torch.dtype, width: int) -> Config:
    """The tile of a kernel of the lesson."""
    return _narrowest(table["single" if dtype == torch.float32 else "half"], width)

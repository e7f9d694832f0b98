"""Sizes of tiles of indexed attention by kernel, dtype and width: data, so that a tuner can rewrite them."""

from __future__ import annotations

from typing import Literal

import torch

from .configs import Config

FEWEST_ROWS = 16
"""Of the smallest tile that `tl.dot` takes."""

Kernel = Literal[
    "forward", "backward_queries", "backward_rows", "backward_blocks", "scores", "scores_queries", "scores_rows", "mass"
]  # fmt: skip


# By the wider of the two widths, up to and including. `queries` are rows of a tile: a query's heads, or heads of
# several. Everything fits the 99 KB of shared memory of a consumer card.
HALF: dict[Kernel, dict[int, Config]] = {
    "forward": {
        64: Config(64, 64, 4, 3), 128: Config(64, 32, 4, 3), 256: Config(64, 32, 8, 2), 576: Config(32, 16, 8, 2),
    },
    "backward_queries": {
        64: Config(64, 32, 4, 3), 128: Config(64, 32, 4, 2), 256: Config(32, 32, 8, 2), 576: Config(16, 16, 8, 1),
    },
    "backward_rows": {
        64: Config(32, 64, 4, 2), 128: Config(32, 64, 8, 2), 256: Config(16, 32, 8, 1), 576: Config(16, 16, 8, 2),
    },
    "backward_blocks": {
        64: Config(32, 64, 4, 2), 128: Config(32, 64, 8, 2), 256: Config(16, 32, 8, 2), 576: Config(16, 16, 8, 2),
    },
    "scores": {
        64: Config(64, 64, 4, 3), 128: Config(64, 64, 4, 2), 256: Config(64, 32, 4, 2), 576: Config(32, 32, 8, 1),
    },
    "scores_queries": {
        64: Config(64, 64, 4, 2), 128: Config(64, 32, 4, 2), 256: Config(32, 32, 8, 2), 576: Config(16, 32, 8, 1),
    },
    "scores_rows": {
        64: Config(64, 64, 4, 2), 128: Config(64, 64, 4, 2), 256: Config(32, 32, 8, 2), 576: Config(16, 32, 8, 1),
    },
    "mass": {
        64: Config(64, 64, 4, 2), 128: Config(64, 64, 4, 2), 256: Config(32, 64, 4, 1), 576: Config(32, 32, 8, 1),
    },
}  # fmt: skip
FEW: dict[Kernel, dict[int, Config]] = {
    "forward": {64: Config(16, 32, 1, 3), 128: Config(16, 32, 1, 3)},
    "backward_queries": {64: Config(16, 32, 1, 3), 128: Config(16, 64, 2, 2)},
    "backward_rows": {64: Config(16, 64, 4, 2), 128: Config(16, 64, 4, 2)},
}
"""In half precision, where single keys are chosen and `FEWEST_ROWS` hold all heads that share them: fewer warps each do
more. With blocks of keys the same tiles would not fit into registers."""
SINGLE: dict[Kernel, dict[int, Config]] = {
    "forward": {64: Config(32, 32, 8, 2), 128: Config(16, 32, 8, 2), 256: Config(16, 16, 8, 1)},
    "backward_queries": {64: Config(32, 32, 4, 2), 128: Config(16, 32, 8, 2), 256: Config(16, 16, 8, 2)},
    "backward_rows": {64: Config(32, 32, 8, 1), 128: Config(16, 32, 8, 1), 256: Config(16, 16, 8, 1)},
    "backward_blocks": {64: Config(32, 32, 8, 1), 128: Config(16, 32, 8, 1), 256: Config(16, 16, 8, 1)},
    "scores": {64: Config(32, 32, 4, 2), 128: Config(32, 32, 8, 2), 256: Config(16, 16, 8, 2)},
    "scores_queries": {64: Config(32, 32, 8, 2), 128: Config(16, 32, 8, 2), 256: Config(16, 16, 8, 2)},
    "scores_rows": {64: Config(32, 32, 8, 1), 128: Config(16, 32, 8, 1), 256: Config(16, 16, 8, 1)},
    "mass": {64: Config(32, 32, 4, 2), 128: Config(32, 32, 8, 2), 256: Config(16, 16, 8, 2)},
}


def widest(dtype: torch.dtype) -> int:
    """Up to which width there are tiles. Float32 that is wider would not fit into registers."""
    return max((SINGLE if dtype == torch.float32 else HALF)["forward"])


def config(kernel: Kernel, dtype: torch.dtype, width: int, heads: int, block: int = 1) -> Config:
    """The tile for a dtype, the wider of the two widths, so many heads that share keys, and blocks of so many keys."""
    few = FEW.get(kernel, {}) if heads <= FEWEST_ROWS and block == 1 and dtype != torch.float32 else {}
    table = few if width <= max(few, default=0) else (SINGLE if dtype == torch.float32 else HALF)[kernel]
    return table[min(limit for limit in table if width <= limit)]

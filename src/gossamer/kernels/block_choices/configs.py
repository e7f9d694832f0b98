"""Sizes of tiles for the kernels over chosen blocks, by dtype and head width: data that a tuner can rewrite."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ChosenConfig:
    """What each kernel is compiled with."""

    rows: int
    """Rows of a tile: the heads of a group for each of its queries."""
    share: int
    """A block is computed for a whole tile where twice one in so many of its queries chose it."""
    tiles: dict[str, int]
    pieces: dict[str, int]
    backward: dict[str, int]
    join: dict[str, int]
    scratch: int = 2 << 30
    """Bytes of pieces that are in memory at a time."""

    def together(self, repeats: int) -> int:
        """Queries of a tile, of so many heads, a power of two: their rows fill it, and their bits fit a word."""
        return max(1, min(32, self.rows // repeats))


HALF: dict[int, ChosenConfig] = {
    128: ChosenConfig(
        rows=128, share=8,
        tiles={"NUM_STAGES": 2, "num_warps": 8, "maxnreg": 128},
        pieces={"ROWS": 64, "NUM_STAGES": 4, "num_warps": 4},
        backward={"ROWS": 64, "NUM_STAGES": 2, "num_warps": 8},
        join={"ROWS": 16, "num_warps": 4},
    ),
    256: ChosenConfig(
        rows=64, share=8,
        tiles={"NUM_STAGES": 2, "num_warps": 4},
        pieces={"ROWS": 64, "NUM_STAGES": 2, "num_warps": 4},
        backward={"ROWS": 32, "NUM_STAGES": 1, "num_warps": 8},
        join={"ROWS": 16, "num_warps": 4},
    ),
}  # fmt: skip
SINGLE: dict[int, ChosenConfig] = {
    256: ChosenConfig(
        rows=32, share=8,
        tiles={"NUM_STAGES": 1, "num_warps": 8},
        pieces={"ROWS": 32, "NUM_STAGES": 1, "num_warps": 8},
        backward={"ROWS": 16, "NUM_STAGES": 1, "num_warps": 8},
        join={"ROWS": 16, "num_warps": 4},
    ),
}  # fmt: skip


def chosen_config(dtype: torch.dtype, width: int) -> ChosenConfig:
    """The tiles for a dtype and the wider of the two head widths."""
    table = SINGLE if dtype == torch.float32 else HALF
    return table[min(widest for widest in table if width <= widest)]

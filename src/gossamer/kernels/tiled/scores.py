"""What forward and backward make of a tile alike: its scores and its dropout mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dropout import keep_factor
from ..problem import Softmax
from .heads import Heads
from .walk import Tile

LOG2E = math.log2(math.e)


def scores(q: Tensor, k: Tensor, tile: Tile, softmax: Softmax) -> tuple[Tensor, Tensor | None]:
    """([lanes, rows, keys] biased scores in units of log 2, the slope of the soft-cap where there is one)."""
    unit = softmax.scale / softmax.softcap if softmax.softcap else softmax.scale * LOG2E
    made = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=unit)
    slope = None
    if softmax.softcap:
        slope = 1 - made.tanh_().square()
        made.mul_(softmax.softcap * LOG2E)
    if tile.bias is not None:
        made.unflatten(1, (-1, tile.bias.shape[0])).add_(tile.bias)
    return made, slope


def keys_of(x: Tensor, tile: Tile) -> Tensor:
    """The tile's keys of [lanes, K, D]."""
    return x[:, tile.keys] if isinstance(tile.keys, slice) else x.index_select(1, tile.keys)


@dataclass(frozen=True, eq=False)
class Dropout:
    """The dropout of some lanes."""

    probability: float
    seed: int
    streams: Tensor
    """[lanes, repeats] the number `batch · heads + head` of each row of queries."""

    @staticmethod
    def of(softmax: Softmax, heads: Heads, q: Tensor, first_sequence: int) -> Dropout | None:
        """The dropout of all lanes of `heads` in sequences from `first_sequence`; None where nothing is dropped."""
        if softmax.seed is None:
            return None
        numbers = torch.arange(q.shape[0] * q.shape[1], device=q.device).view(q.shape[:2])
        numbers += first_sequence * q.shape[1]
        streams = heads.lanes(numbers[..., None, None], torch.int64)[..., 0, 0]
        return Dropout(softmax.dropout, int(softmax.seed.item()), streams)

    def part(self, lanes: slice) -> Dropout:
        return Dropout(self.probability, self.seed, self.streams[lanes])

    def factors(self, tile: Tile) -> Tensor:
        """[lanes, rows, keys] 0 where a pair of the tile is dropped, 1 / (1 - probability) elsewhere."""
        keep = keep_factor(self.probability, self.seed, self.streams.flatten(), tile.q_positions, tile.k_positions)
        return keep.unflatten(0, self.streams.shape).flatten(1, 2)

"""`BlockTopK`: which blocks of keys each query sees, where every block has a score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from ..patterns.base import require_integer

CELLS = 2**24
"""Scores that are held at once, at most, unless one query has more: 64 MiB of float32."""


@dataclass(frozen=True)
class BlockTopK:
    """At most `count` blocks for each query: the first ones, those up to its own, and of the others the highest.

    No block that begins after the query is chosen. Of equal scores the older block wins, so the choice is the same at
    every call. Scores that are no numbers count as the lowest.

    >>> BlockTopK(size=4, count=2).choose(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([9])).tolist()
    [[0, 2]]

    Raises:
        ValueError: A number is no integer or too small; or more blocks are always seen than `count`.
    """

    size: int
    """Keys of a block. The last block of a sequence may be cut short."""
    count: int
    """Blocks that a query sees, those that it always sees included."""
    first: int = 0
    """Blocks at the beginning that are always seen."""
    local: int = 1
    """Blocks up to the query's own that are always seen; 1: its own alone."""

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("count", 1), ("first", 0), ("local", 0)):
            number = require_integer("BlockTopK", name, getattr(self, name), least=least)
            object.__setattr__(self, name, number)
        if self.first + self.local > self.count:
            raise ValueError(
                f"BlockTopK: first is {self.first} and local is {self.local}, which is more than count={self.count}; "
                f"give a count of at least {self.first + self.local}"
            )

    def blocks(self, keys: int) -> int:
        """How many blocks so many keys have."""
        return -(-keys // self.size)

    def choose(self, scores: Float[Tensor, "*B Q M"], positions: Int[Tensor, " Q"]) -> Int32[Tensor, "*B Q n"]:
        """Numbers of the chosen blocks in ascending order, -1 behind the last where there are fewer than n.

        Args:
            scores: Of each query and block; n is the lesser of `count` and M.
            positions: Where each query stands among the keys.
        """
        block = torch.arange(scores.shape[-1], device=scores.device)
        own = (positions // self.size)[:, None]
        begun = block <= own
        forced = begun & ((block < self.first) | (block > own - self.local))
        lowest, highest = torch.finfo(scores.dtype).min, torch.finfo(scores.dtype).max
        scores = torch.nan_to_num(scores, nan=lowest, posinf=highest, neginf=lowest)
        scores = scores.masked_fill(forced, torch.inf).masked_fill(~begun, -torch.inf)
        return _highest(scores, min(self.count, scores.shape[-1]))


def _highest(scores: Tensor, count: int) -> Tensor:
    """int32: where the `count` highest of the last axis stand, ascending; nothing that is minus infinity, but -1.

    Which of several equal numbers `topk` takes is not said, but what their value is. So the value of the last one is
    asked for alone, and of those that equal it the older ones are taken.
    """
    last = scores.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, level = scores > last, (scores == last) & (scores > -torch.inf)
    room = count - above.sum(-1, keepdim=True)
    chosen = above | (level & (level.cumsum(-1) <= room))
    place = (chosen.cumsum(-1) - 1).masked_fill(~chosen, count)  # what is not chosen falls into a column of its own
    number = torch.arange(scores.shape[-1], device=scores.device, dtype=torch.int32).expand_as(scores)
    found = number.new_full((*scores.shape[:-1], count + 1), -1)
    return found.scatter_(-1, place, number)[..., :count]


def query_chunks(queries: int, cells: int) -> Iterator[slice]:
    """Runs of queries so long that `CELLS` scores are held at once, where one query has `cells`."""
    step = max(1, CELLS // max(cells, 1))
    return (slice(first, min(first + step, queries)) for first in range(0, max(queries, 1), step))


def positions_of(queries: int, keys: int, device: torch.device) -> Int[Tensor, " Q"]:
    """Where the queries stand: the last one at the last key.

    Raises:
        ValueError: There are more queries than keys, or no key.
    """
    if queries > keys or not keys:
        raise ValueError(
            f"q has {queries} queries and k {keys} keys; give at least as many keys, and one: the last query stands "
            f"at the last key"
        )
    return torch.arange(keys - queries, keys, device=device)

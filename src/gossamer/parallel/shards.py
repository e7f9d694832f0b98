"""A sequence in contiguous shards, one for each process of a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch.distributed as dist
from torch.distributed import ProcessGroup

from ..patterns.base import require_integer


@dataclass
class Traffic:
    """What this process has sent to others of its group, counted as it leaves."""

    nbytes: int = 0
    """Bytes that left this process."""
    messages: int = 0
    """Parcels that were not empty: one for each receiver."""


@dataclass(frozen=True, eq=False)
class Shards:
    """How a sequence is cut over the processes of a group: rank r holds positions `bounds[r] … bounds[r + 1] - 1`.

    >>> shards = Shards((0, 3, 5), rank=1)
    >>> shards.first, shards.stop, shards.length
    (3, 5, 5)

    Raises:
        ValueError: The bounds do not start at 0 and ascend, or are not those of the group's processes.
    """

    bounds: tuple[int, ...]
    rank: int
    group: ProcessGroup | None = None
    """None: the default group."""
    traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        bounds = tuple(require_integer("Shards", "a bound", bound, least=0) for bound in self.bounds)
        if len(bounds) < 2 or bounds[0] or any(a >= b for a, b in pairwise(bounds)):
            raise ValueError(f"Shards: bounds are {bounds}; give 0 and the end of each shard, none of them empty")
        if not 0 <= self.rank < len(bounds) - 1:
            raise ValueError(f"Shards: rank is {self.rank}; give one of the {len(bounds) - 1} shards, counted from 0")
        object.__setattr__(self, "bounds", bounds)

    @classmethod
    def even(cls, length: int, group: ProcessGroup | None = None) -> Shards:
        """The sequence in as equal shards as can be over a group's processes; the first ones are longer by one.

        Raises:
            ValueError: It has fewer tokens than the group has processes.
        """
        length, count = require_integer("Shards", "length", length, least=0), dist.get_world_size(group)
        if length < count:
            raise ValueError(f"Shards: length is {length}; give at least a token to each of the {count} processes")
        sizes = [length // count + (rank < length % count) for rank in range(count)]
        return cls.of(sizes, group)

    @classmethod
    def of(cls, sizes: Sequence[int], group: ProcessGroup | None = None) -> Shards:
        """Shards of these lengths, one for each process of the group.

        Raises:
            ValueError: They are not one for each process, or one is empty.
        """
        count = dist.get_world_size(group)
        if len(sizes) != count:
            raise ValueError(f"Shards: sizes are {list(sizes)}; give one for each of the {count} processes")
        return cls(tuple(accumulate(sizes, initial=0)), dist.get_rank(group), group)

    @property
    def count(self) -> int:
        """How many shards there are."""
        return len(self.bounds) - 1

    @property
    def sizes(self) -> list[int]:
        """Tokens of each."""
        return [stop - first for first, stop in pairwise(self.bounds)]

    @property
    def first(self) -> int:
        """Position of this process's first token."""
        return self.bounds[self.rank]

    @property
    def stop(self) -> int:
        """Position behind its last one."""
        return self.bounds[self.rank + 1]

    @property
    def length(self) -> int:
        """Tokens of the whole sequence."""
        return self.bounds[-1]

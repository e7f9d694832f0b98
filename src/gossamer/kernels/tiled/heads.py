"""Heads as lanes: the query heads of a group beside exactly the key heads that they use."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...plan import Plan
from ..head_runs import HeadRun, head_runs


class Heads(HeadRun):
    """A run of heads whose tensors become lanes; a lane is one key head of one batch row."""

    @classmethod
    def of(cls, plan: Plan, repeats: int) -> Iterator[Heads]:
        """Each group's heads, cut where a key head is shared with another group."""
        return (cls(**vars(run)) for run in head_runs(plan.apart, repeats))

    def lanes(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, H, Q, D] → [lanes, repeats, Q, D]."""
        shape = self.keys.stop - self.keys.start, self.repeats
        return x[:, self.queries].unflatten(1, shape).flatten(0, 1).to(dtype)

    def key_lanes(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, G, K, D] → [lanes, K, D]."""
        return x[:, self.keys].flatten(0, 1).to(dtype)

    def unlaned(self, lanes: Tensor, batch: int) -> Tensor:
        """The inverse of `lanes`: [lanes, repeats, Q, D] → [B, heads, Q, D]."""
        return lanes.reshape(batch, self.queries.stop - self.queries.start, *lanes.shape[2:])

    def put_keys(self, total: Tensor, lanes: Tensor) -> None:
        """Writes changed `key_lanes` of [B, G, K, D] back, where they could not be a view of it."""
        target = total[:, self.keys]
        if lanes.data_ptr() != target.data_ptr():
            target.copy_(lanes.view(target.shape))

"""Which keys each query sees where a model chooses them itself, at run time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, eq=False)
class Selection:
    """For each query the keys that a model chose for it: every one counts once, in whatever order they stand.

    A number outside the keys, such as -1, chooses nothing, and what `mask` or `causal` hides stays hidden although it
    was chosen. The last query stands at the last key.

    >>> selection = Selection(torch.tensor([[[2, 0, 2], [1, -1, 9]]]))
    >>> selection.strip(0, 2, keys=4).int().tolist()  # two queries, four keys
    [[[[1, 0, 1, 0], [0, 1, 0, 0]]]]

    Args:
        indices: Numbers of keys, int32 or int64: [B, Q, n] where all heads share the choice, or [B, N, Q, n] where
            each of N runs of heads has its own; N divides the key heads.
        block_size: The numbers are those of blocks of so many keys, of which the last may be cut short.
        causal: Keys after the query stay hidden, those of a chosen block too.
        mask: [B, 1 or N, Q, K], or 1 in place of B or Q: True where a query may see a key. A floating one hides
            wherever it is not 0, as the masks that transformers adds to scores do. Keys beyond the last are ignored.
    """

    indices: Tensor
    block_size: int = 1
    causal: bool = False
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.indices.ndim == 3:
            object.__setattr__(self, "indices", self.indices[:, None])
        if self.indices.shape[-1] == 0:  # nothing is chosen: one number that chooses nothing says the same
            object.__setattr__(self, "indices", pad(self.indices, (0, 1), value=-1))

    @property
    def size(self) -> int:
        """At most so many keys are chosen for a query."""
        return self.indices.shape[-1] * self.block_size

    def distinct(self, first: int, last: int, keys: int) -> tuple[Tensor, Tensor]:
        """(keys in ascending order, whether each is visible) for queries `first … last - 1`: [B, N, b, size] both.

        A key that was chosen twice is visible once. Every number is one of a key, so that it can be gathered.
        """
        chosen = self._chosen(first, last, keys).sort(dim=-1).values
        new = pad(chosen[..., 1:] != chosen[..., :-1], (1, 0), value=True)
        visible = new & (chosen < keys)
        chosen = chosen.clamp(max=keys - 1)
        if self.causal:
            visible &= chosen <= self._positions(first, last, keys)
        allowed = self._allowed(first, last)
        return chosen, visible if allowed is None else visible & allowed.gather(-1, chosen)

    def standing(self, first: int, last: int, keys: int) -> Tensor:
        """int32 [B, N, b, size]: the visible keys of queries `first … last - 1` where they stand, -1 elsewhere.

        A key that was chosen twice stands at its first place alone.
        """
        chosen = self._chosen(first, last, keys)
        ordered, place = chosen.sort(dim=-1, stable=True)
        again = pad(ordered[..., 1:] == ordered[..., :-1], (1, 0), value=False)
        hidden = torch.zeros_like(again).scatter_(-1, place, again) | (chosen == keys)
        if self.causal:
            hidden |= chosen > self._positions(first, last, keys)
        allowed = self._allowed(first, last)
        if allowed is not None:
            hidden |= ~allowed.gather(-1, chosen.clamp(max=keys - 1))
        return chosen.masked_fill(hidden, -1).int()

    def strip(self, first: int, last: int, keys: int) -> Tensor:
        """Whether queries `first … last - 1` see each of all the keys: [B, N, b, K]."""
        chosen = self._chosen(first, last, keys)
        seen = torch.zeros(*chosen.shape[:-1], keys + 1, dtype=torch.bool, device=chosen.device)
        seen = seen.scatter_(-1, chosen, True)[..., :keys]
        if self.causal:
            seen = seen & (torch.arange(keys, device=seen.device) <= self._positions(first, last, keys))
        allowed = self._allowed(first, last)
        return seen if allowed is None else seen & allowed[..., :keys]

    def _chosen(self, first: int, last: int, keys: int) -> Tensor:
        """Numbers of keys; `keys` stands for every number that is not one of a key."""
        chosen = self.indices[:, :, first:last].long()
        if self.block_size > 1:
            blocks = -(-keys // self.block_size)
            chosen = chosen.masked_fill((chosen < 0) | (chosen > blocks), blocks)  # so that no product overflows
            inside = torch.arange(self.block_size, device=chosen.device)
            chosen = (chosen[..., None] * self.block_size + inside).flatten(-2)
        return chosen.masked_fill((chosen < 0) | (chosen >= keys), keys)

    def _positions(self, first: int, last: int, keys: int) -> Tensor:
        """[b, 1]: where the queries stand among the keys."""
        ahead = keys - self.indices.shape[2]
        return torch.arange(first + ahead, last + ahead, device=self.indices.device)[:, None]

    def _allowed(self, first: int, last: int) -> Tensor | None:
        if self.mask is None:
            return None
        batch, runs, queries, _ = self.indices.shape
        mask = self.mask.expand(batch, runs, queries, -1)[:, :, first:last]
        return mask if mask.dtype == torch.bool else mask == 0

"""The keys and values that a pattern will read again, and no others: a ring of the newest, an archive of the rest.

A key enters the ring and leaves it when `ring` newer ones have come. What will still be read then (sinks, strided or
chosen keys) moves on to the archive, which stands behind the ring in the same memory. So what is held is always the
first slots of one tensor, and where a pattern reads all that is held, a new token needs no mask and no copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..patterns.base import Pattern
from ..patterns.lifetimes import FOREVER, NEVER
from .survivors import BLOCK, Positions, lives, ring_of, survivors


@dataclass(frozen=True, eq=False)
class Excerpted:
    """Some sequences' keys in order: those kept from before, and the new ones."""

    keys: Tensor
    values: Tensor
    kept: Positions
    """Positions of the first ones; all others run on from `start`."""
    start: int


class Clocks:
    """Where the next tokens go in rings, counted on the device: once for all that have one size and one position."""

    def __init__(self) -> None:
        self._slots: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def slots(self, ring: int, positions: Positions, device: torch.device) -> Tensor:
        """The slots [B], or [1] for all, of tokens at these positions, which `advance` will count on."""
        key = ring, tuple(positions.tolist())
        if key not in self._slots:
            self._slots[key] = torch.from_numpy(positions % ring).to(device)
        return self._slots[key]

    def advance(self) -> None:
        """Counts one token of each sequence, after every layer has taken it."""
        for (ring, _), slots in self._slots.items():
            slots.add_(1).remainder_(ring)


class KeptKeys:
    """Keys and values [B, G, ·, D] of heads that follow one pattern, as long as it will read them.

    `ahead` counts, for each sequence, the tokens of padding still to come: they are never held.
    """

    def __init__(self, pattern: Pattern, ahead: Positions):
        self.pattern = pattern
        self.ring = ring_of(pattern)
        self.next = -ahead  # [B] position of each sequence's next token; below 0 while padding is still to come
        self.archived: list[Positions] = [np.empty(0, np.int64) for _ in ahead]
        self.keys, self.values = torch.empty(0), torch.empty(0)  # until the first come
        self.plain = True  # each later query sees all that is held, as long as `step` alone adds to it
        self.quiet = range(0)  # positions at which a step drops what leaves the ring, and archives nothing
        self.slots: Tensor | None = None
        """[B], or [1] for all: where the next tokens go, where the device itself counts."""

    @property
    def empty(self) -> bool:
        """Whether no memory was taken yet, because no token came."""
        return self.keys.dim() == 1

    @property
    def together(self) -> bool:
        """Whether all sequences stand at one position."""
        return len(self.next) < 2 or bool((self.next == self.next[0]).all())

    @property
    def filled(self) -> Positions:
        """[B] how many slots from the first on are held."""
        return np.clip(self.next, 0, self.ring) + [len(positions) for positions in self.archived]

    def groups(self) -> list[NDArray[np.int64]]:
        """The sequences, those at one position together."""
        return [np.flatnonzero(self.next == position) for position in np.unique(self.next)]

    def step(self, k: Tensor, v: Tensor) -> bool:
        """Takes one token of each sequence, if its query then sees all that is held; else changes nothing."""
        if not self.plain or self.empty or self.next.min() < 0:
            return False
        if self.slots is not None:
            self._step_on_the_device(k, v, self.slots)
        elif self.together:
            position = int(self.next[0])
            move = (True, False) if self._is_quiet(position, position) else self._move(position)
            if move is None:
                return False
            self._step_together(k, v, position, move)
        else:
            moves = {int(position): self._move(int(position)) for position in np.unique(self.next)}
            if None in moves.values():
                return False
            self._step_apart(k, v, np.array([moves[int(position)] for position in self.next]))
        self.next = self.next + 1
        return True

    def repeats(self) -> bool:
        """Whether the next step is one more of a kind that the device can repeat alone: a token into a full ring of
        each sequence, and one dropped."""
        full = self.plain and not self.empty and self.ring and self.next.min() >= self.ring
        alike = len(set(map(len, self.archived))) == 1
        return bool(full) and alike and self._is_quiet(int(self.next.min()), int(self.next.max()))

    def follow(self, clocks: Clocks | None) -> None:
        """From now on the device alone knows where the next tokens go, or no longer; only where a step `repeats`."""
        places = self.next[:1] if self.together else self.next
        self.slots = None if clocks is None else clocks.slots(self.ring, places, self.keys.device)

    def excerpt(self, rows: NDArray[np.int64], k: Tensor, v: Tensor) -> Excerpted:
        """All that is held of some sequences at one position, in order, and the new keys behind it."""
        past, archived = int(self.next[rows[0]]), self.archived[rows[0]]
        ran = np.arange(max(past - self.ring, 0), max(past, 0))
        held, start = np.concatenate([archived, ran]), max(past, 0)
        gaps = np.flatnonzero(np.diff(np.append(held, start)) > 1)
        kept = held[: gaps[-1] + 1] if len(gaps) else held[:0]
        if len(kept) < len(held):
            start = int(held[len(kept)])
        if not len(held):
            return Excerpted(k, v, kept, start)
        slots = np.concatenate([self.ring + np.arange(len(archived)), ran % max(self.ring, 1)])
        old = (_taken(x, rows, slots) for x in (self.keys, self.values))
        keys, values = (torch.cat([held, new], dim=2) for held, new in zip(old, (k, v), strict=True))
        return Excerpted(keys, values, kept, start)

    def keep(self, rows: NDArray[np.int64], found: Excerpted, new: int) -> None:
        """Holds of an excerpt whose last `new` tokens are new what will be read by later queries."""
        end = max(int(self.next[rows[0]]), 0) + new
        left = survivors(self.pattern, self.ring, found.kept.tobytes(), found.start, end)
        self._make_room(found.keys, found.values, int(left.slots.max(initial=-1)) + 1)
        index, slots = _on(self.keys.device, left.index, left.slots)
        for held, x in ((self.keys, found.keys), (self.values, found.values)):
            _put(held, rows, slots, x.detach().index_select(2, index))
        for row in rows:
            self.archived[row] = left.archived
        self.next[rows] = end
        self.plain = self.plain and left.plain

    def pick(self, order: Tensor) -> None:
        """Holds the sequences `order` [B'] of those held, as beam search asks."""
        if not self.empty:
            with torch.inference_mode(False):  # to be written to in any mode
                self.keys, self.values = (x.index_select(0, order.to(x.device)) for x in (self.keys, self.values))
        if len(order) != len(self.next) or len(self.groups()) > 1:
            chosen = order.tolist()
            self.next, self.archived = self.next[chosen], [self.archived[row] for row in chosen]

    def _move(self, position: int) -> tuple[bool, bool] | None:
        """(the token at `position` is held, the one that leaves the ring for it is archived); None where a query
        at `position` would not see all that is held."""
        (last,), (steady,) = lives(self.pattern, np.array([position]))
        if not self.ring:
            return None if last not in (NEVER, FOREVER) or not steady else (bool(last == FOREVER), False)
        if last < self.ring - 1 or not steady:
            return None
        if position < self.ring:
            return True, False
        (leaving,), (steady,) = lives(self.pattern, np.array([position - self.ring]))
        if leaving not in (self.ring - 1, FOREVER) or not steady:
            return None
        return True, bool(leaving == FOREVER)

    def _is_quiet(self, first: int, last: int) -> bool:
        """Whether steps at `first … last` move nothing to the archive, and let their queries see all that is held."""
        if not self.ring or first < self.ring:
            return False
        if first not in self.quiet or last not in self.quiet:
            run = np.arange(first, last + BLOCK)
            come, leave = (lives(self.pattern, run - back) for back in (0, self.ring))
            fine = (come[0] >= self.ring - 1) & come[1] & (leave[0] == self.ring - 1) & leave[1]
            self.quiet = range(first, first + (len(run) if fine.all() else int(fine.argmin())))
        return last in self.quiet

    def _step_on_the_device(self, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """As few launches as can be: a replayed graph has nothing else to wait for."""
        for cache, new in ((self.keys, k), (self.values, v)):
            if len(slots) == 1:
                cache.index_copy_(2, slots, new.detach())
            else:
                cache[torch.arange(len(slots), device=k.device), :, slots] = new[:, :, 0].detach()

    def _step_together(self, k: Tensor, v: Tensor, position: int, move: tuple[bool, bool]) -> None:
        held, archives = move
        behind = self.ring + len(self.archived[0])
        slot = position % self.ring if self.ring else behind
        self._make_room(k, v, (behind if archives else slot) + 1)
        for cache, new in ((self.keys, k), (self.values, v)):
            if archives:
                cache[:, :, behind] = cache[:, :, slot]
            if held:
                cache[:, :, slot] = new[:, :, 0].detach()
        if archives or (held and not self.ring):
            positions = np.append(self.archived[0], position - self.ring)
            self.archived = [positions] * len(self.archived)

    def _step_apart(self, k: Tensor, v: Tensor, moves: NDArray[np.bool_]) -> None:
        behind = self.ring + np.array([len(positions) for positions in self.archived])
        slots = self.next % self.ring if self.ring else behind
        held, archives = (np.flatnonzero(chosen) for chosen in moves.T)
        self._make_room(k, v, max(slots[held].max(initial=-1), behind[archives].max(initial=-1)) + 1)
        for cache, new in ((self.keys, k), (self.values, v)):
            row, to, slot = _on(cache.device, archives, behind[archives], slots[archives])
            cache[row, :, to] = cache[row, :, slot]
            row, slot = _on(cache.device, held, slots[held])
            cache[row, :, slot] = new[row, :, 0].detach()
        for row in archives if self.ring else held:
            self.archived[row] = np.append(self.archived[row], self.next[row] - self.ring)

    def _make_room(self, k: Tensor, v: Tensor, slots: int) -> None:
        """Memory for as many slots: the ring's while it fills, then the archive's; it doubles where it has to grow."""
        if self.empty:
            self.keys, self.values = (_empty(x, len(self.next), slots) for x in (k, v))
        have = self.keys.shape[2]
        if slots > have:
            in_ring, behind = min(2 * have, self.ring), max(self.ring + 2 * (have - self.ring), slots + 8)
            room = max(slots, in_ring) if slots <= self.ring else behind
            self.keys, self.values = (_roomier(x, room) for x in (self.keys, self.values))


def _on(device: torch.device, *numbers: NDArray[np.int64]) -> Iterator[Tensor]:
    return (torch.from_numpy(x).to(device) for x in numbers)


def _empty(like: Tensor, batch: int, slots: int) -> Tensor:
    """Memory that may be written to in any mode, whether it was taken in inference mode or not."""
    with torch.inference_mode(False):
        return like.new_empty(batch, like.shape[1], slots, like.shape[3])


def _roomier(held: Tensor, slots: int) -> Tensor:
    """The same slots with empty ones behind them."""
    larger = _empty(held, len(held), slots)
    larger[:, :, : held.shape[2]] = held
    return larger


def _taken(x: Tensor, rows: NDArray[np.int64], slots: NDArray[np.int64]) -> Tensor:
    """Some slots of some sequences of what is held [B, G, ·, D]."""
    row, slot = _on(x.device, rows, slots)
    return (x if len(rows) == len(x) else x[row]).index_select(2, slot)


def _put(held: Tensor, rows: NDArray[np.int64], slots: Tensor, x: Tensor) -> None:
    """Writes x [b, G, ·, D] to some slots of some sequences."""
    if len(rows) == len(held):
        held.index_copy_(2, slots, x.to(held.dtype))
    else:
        (row,) = _on(held.device, rows)
        held[row[:, None], :, slots] = x.transpose(1, 2).to(held.dtype)

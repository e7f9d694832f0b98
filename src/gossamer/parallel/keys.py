"""Keys and values that travel to the queries which read them, and their gradients, which travel back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.layout import empty_beside
from ..ops.merge import merge_into
from ..patterns.section import Run, counted
from .course import Course, Part, SidePart
from .exchange import Trip
from .shards import Shards
from .softmax_part import Scores, SoftmaxPart


def depart(k: Tensor, v: Tensor, course: Course, shards: Shards) -> Trip:
    """Sends what others read of this shard."""
    parcels, awaited = [], []
    for rank in range(shards.count):
        mine = [(part, x[:, part.heads.keys]) for part in course.parts for x in (k, v)]
        parcels.append([taken(x, part.sent[rank]) for part, x in mine])
        awaited.append([(as_long(x, part.received[rank]), x.dtype) for part, x in mine])
    return Trip(parcels, awaited, shards, k.device)


@dataclass(frozen=True, eq=False)
class Come:
    """Keys and values that the heads of a part have received, and what is computed over them."""

    part: Part
    k: Tensor
    v: Tensor
    sides: tuple[tuple[SidePart, SoftmaxPart], ...]

    def merge(self, q: Tensor, out: Tensor, lse: Tensor) -> None:
        """Joins the softmax over them to the one that `out` and `lse` hold, in place."""
        for side, softmax in self.sides:
            at = slice(None), self.part.heads.queries, side.queries
            more = softmax.forward(q[at], self.k[:, :, side.keys], self.v[:, :, side.keys])
            merge_into(out[at], lse[at], *more)

    def backward(self, grad_out: Tensor, q: Tensor, out: Tensor, lse: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """(gradient of each side's queries, of the keys, of the values)."""
        dq, dk, dv = [], [], []
        for side, softmax in self.sides:
            at = slice(None), self.part.heads.queries, side.queries
            some = (x[at].contiguous() for x in (out, lse))
            one, *others = softmax.backward(
                grad_out[at], q[at], self.k[:, :, side.keys], self.v[:, :, side.keys], *some
            )
            dq.append(one)
            for whole, x in zip((dk, dv), others, strict=True):
                whole.append(x)
        return dq, joined(dk, self.k[:, :, :0]), joined(dv, self.v[:, :, :0])

    def beside(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A shard's own keys and values among those that have come, in their order."""
        return _among(self.k, k, self.part.before), _among(self.v, v, self.part.before)

    def apart(self, dx: Tensor) -> tuple[Tensor, Tensor]:
        """(the gradient of what has come, that of a shard's own), of keys or values that stood `beside`."""
        before, come = self.part.before, self.k.shape[2]
        first, own, last = dx.split([before, dx.shape[2] - come, come - before], dim=2)
        return joined([first, last], first[:, :, :0]), own

    def add(self, of_queries: list[Tensor], dq: Tensor) -> None:
        """Adds the gradients of each side's queries to those of all, in place."""
        for (side, _), some in zip(self.sides, of_queries, strict=True):
            dq[:, self.part.heads.queries, side.queries] += some


def arrive(trip: Trip, course: Course, scores: Scores, device: torch.device) -> list[Come]:
    """What others sent, for each part of the heads."""
    come, found = trip.arrive(), []
    for number, part in enumerate(course.parts):
        k, v = (_together([parcel[2 * number + which] for parcel in come]) for which in (0, 1))
        sides = tuple((side, SoftmaxPart.of(side.text, scores, device)) for side in part.sides)
        found.append(Come(part, k, v, sides))
    return found


def give_back(gradients: Sequence[tuple[Tensor, Tensor]], come: Sequence[Come], shards: Shards) -> Trip:
    """Sends the gradients of keys and values to where they came from."""
    parcels: list[list[Tensor]] = [[] for _ in range(shards.count)]
    awaited: list[list[tuple[tuple[int, ...], torch.dtype]]] = [[] for _ in range(shards.count)]
    for one, pair in zip(come, gradients, strict=True):
        for x in pair:
            for rank, piece in enumerate(x.split(one.part.received, dim=2)):
                parcels[rank].append(piece)
            for rank, runs in enumerate(one.part.sent):
                awaited[rank].append((as_long(x, counted(runs)), x.dtype))
    return Trip(parcels, awaited, shards, come[0].k.device)


def take_back(trip: Trip, dk: Tensor, dv: Tensor, course: Course) -> None:
    """Adds to this shard's gradients what others made of its keys; their sum is taken in at least float32."""
    returned = trip.arrive()
    for number, part in enumerate(course.parts):
        for which, dx in enumerate((dk, dv)):
            pieces = [parcel[2 * number + which] for parcel in returned]
            _add_up(dx[:, part.heads.keys], [(runs, x) for runs, x in zip(part.sent, pieces, strict=True) if runs])


def taken(x: Tensor, runs: Iterable[Run]) -> Tensor:
    """Some tokens of [B, G, N, …]."""
    return joined([x[:, :, first:stop:step] for first, stop, step in runs], x[:, :, :0])


def joined(pieces: Sequence[Tensor], nothing: Tensor) -> Tensor:
    """Tokens of [B, G, N, …] behind one another; `nothing` where there is no piece that has any."""
    some = [x for x in pieces if x.shape[2]]
    return torch.cat(some, dim=2) if len(some) > 1 else some[0] if some else nothing


def _among(come: Tensor, own: Tensor, before: int) -> Tensor:
    """Tokens of [B, G, N, D] behind the first ones that have come and before the others, laid out as they lie: so most
    of them are copied as they stand, and not number by number."""
    whole = empty_beside(own, own.shape[-1], own.shape[2] + come.shape[2])
    stop = before + own.shape[2]
    whole[:, :, before:stop] = own
    put(whole, ((0, before, 1), (stop, whole.shape[2], 1)), come)
    return whole


def put(x: Tensor, runs: Iterable[Run], new: Tensor) -> None:
    """Writes `new` to some tokens of x [B, G, N, …]."""
    for run, piece in _along(runs, new):
        x[:, :, run] = piece


def _along(runs: Iterable[Run], x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Where each run lies, and its tokens of x [B, G, n, …], which has those of all runs."""
    start = 0
    for run in runs:
        end = start + len(range(*run))
        yield slice(*run), x[:, :, start:end]
        start = end


def _add_up(x: Tensor, pieces: list[tuple[tuple[Run, ...], Tensor]]) -> None:
    """Adds pieces to some tokens each; everything between the first and the last is rounded once, if it is touched."""
    if not pieces:
        return
    first = min(runs[0][0] for runs, _ in pieces)
    hull = x[:, :, first : max(runs[-1][1] for runs, _ in pieces)]
    total = hull.to(torch.promote_types(x.dtype, torch.float32), copy=True)
    for runs, piece in pieces:
        for run, some in _along(runs, piece):
            total[:, :, run.start - first : run.stop - first : run.step] += some
    hull.copy_(total)


def _together(pieces: list[Tensor]) -> Tensor:
    return joined(pieces, pieces[0][:, :, :0])


def as_long(x: Tensor, tokens: int) -> tuple[int, ...]:
    """The shape of as many tokens of [B, G, N, …]."""
    return (*x.shape[:2], tokens, *x.shape[3:])

"""Tokens in the order of their buckets, cut into chunks: what hashing leaves for the kernels.

In each round of hashing the tokens of a head are sorted by (bucket, position) and cut into chunks of equal size; a
chunk meets itself and its neighbours. All of it is found on the device, and the host waits for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Edge = Literal["stops", "wraps", "crosses"]
EDGES: tuple[Edge, ...] = ("stops", "wraps", "crosses")

MOST_BUCKETS = 2**31 - 1
"""Bucket numbers that nobody vouches for are below this."""


@dataclass(frozen=True)
class Chunks:
    """How the chunks of sorted rounds meet: each the `before` chunks before it, itself, and the `after` after it.

    Beyond the edge of a round there is nothing ("stops"), the other end of the same round ("wraps"), or the round
    before or after, the first one after the last ("crosses"). No chunk is met twice, however few there are.
    """

    size: int
    before: int
    after: int
    edge: Edge
    causal: bool

    def count(self, length: int) -> int:
        """Chunks of a round; the last one may be short."""
        return -(-length // self.size)

    def met(self, length: int, rounds: int) -> int:
        """How many chunks one chunk meets: the distances `-before … met - before - 1`."""
        wanted = self.before + 1 + self.after
        if self.edge == "stops":
            return wanted
        return min(wanted, self.count(length) * (rounds if self.edge == "crosses" else 1))


class SortedRounds(NamedTuple):
    """Rounds of sorted tokens, as int32 tensors on the device of the buckets.

    `place`, `start` and `stop` are there where pairs are judged by them: token i sees, in round r, at most the places
    `start[i, r] … stop[i, r] - 1`, and stands at `place[i, r]` itself.
    """

    order: Tensor
    """[B, H, R, N]: the token at each place. Tokens that do not exist stand last."""
    place: Tensor | None = None
    """[B, H, N, R]: the place of each token, the inverse of `order`."""
    start: Tensor | None = None
    """[B, H, N, R]"""
    stop: Tensor | None = None
    """[B, H, N, R]"""
    count: Tensor | None = None
    """[B]: how many tokens of a sequence exist; all of them where it is None."""


def sorted_rounds(
    buckets: Tensor,
    chunks: Chunks,
    *,
    most: int | None = None,
    within: Tensor | None = None,
    own_bucket: bool = False,
    once: bool = False,
) -> SortedRounds:
    """Sorts the tokens of each round by (bucket, position), with one sort for all rounds, heads and sequences.

    Args:
        buckets: int64 [B, H, R, N], from 0 on. Buckets of different rounds are never compared.
        most: What every bucket number is below; by default 2³¹ - 1. A small one makes the sort cheaper.
        within: int32 [B, 2]: only the tokens `within[b, 0] … within[b, 1] - 1` of sequence b exist.
        own_bucket: Find the places of each token's own bucket that its chunk meets.
        once: Find the place of every token in every round, so that pairs that meet again can be told.
    """
    most = MOST_BUCKETS if most is None else most
    fits = ((buckets >= 0) & (buckets < most)).all()
    torch._assert_async(fits, f"buckets holds numbers outside 0 ... {most - 1}")  # told by the device: nobody waits
    batch, heads, rounds, length = buckets.shape
    count = None
    if within is not None:
        exists, count = _existing(within, length)
        buckets = torch.where(exists[:, None, None], buckets, most)
    ranked, order = _sorted(buckets.flatten(0, 2), most)
    place = start = stop = None
    if own_bucket or once:
        place = inverse(order)
        start, stop = (x.gather(1, place.long()) for x in _spans(ranked, chunks, own_bucket=own_bucket))
        place, start, stop = (
            x.view(batch, heads, rounds, length).transpose(2, 3).contiguous() for x in (place, start, stop)
        )
    return SortedRounds(order.view(batch, heads, rounds, length), place if once else None, start, stop, count)


def inverse(order: Tensor) -> Tensor:
    """Where each token stands in orders along the last axis: `order` undone."""
    places = torch.arange(order.shape[-1], dtype=order.dtype, device=order.device)
    return torch.empty_like(order).scatter_(-1, order.long(), places.expand_as(order))


def _existing(within: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(bool [B, N], int32 [B]): which tokens exist, and how many."""
    first, last = within.clamp(0, length).unbind(1)
    position = torch.arange(length, device=within.device)
    exists = (position >= first[:, None]) & (position < last[:, None])
    return exists, (last - first).clamp(min=0).to(torch.int32)


def _sorted(buckets: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """([lanes, N] sorted numbers that differ where buckets do, int32 [lanes, N] the token at each place).

    Lanes are put one after the other and sorted as one, because a sort each would be a launch each. The sort is
    stable, so that tokens of one bucket keep their order.
    """
    lanes, length = buckets.shape
    dtype = torch.int32 if lanes * (most + 1) <= MOST_BUCKETS else torch.int64
    lane = torch.arange(lanes, dtype=dtype, device=buckets.device)[:, None]
    ranked, index = torch.sort((lane * (most + 1) + buckets.to(dtype)).flatten(), stable=True)
    return ranked.view(lanes, length), (index.view(lanes, length) % max(length, 1)).to(torch.int32)


def _spans(ranked: Tensor, chunks: Chunks, *, own_bucket: bool) -> tuple[Tensor, Tensor]:
    """int32 [lanes, N] (start, stop): the places that each place's chunk meets, of its own bucket or of all."""
    length = ranked.shape[1]
    place = torch.arange(length, dtype=torch.int32, device=ranked.device)
    chunk = place // chunks.size
    start = ((chunk - chunks.before) * chunks.size).clamp(min=0).expand(ranked.shape)
    stop = ((chunk + 1 + chunks.after) * chunks.size).clamp(max=length).expand(ranked.shape)
    if not own_bucket:
        return start, stop
    first, last = (torch.searchsorted(ranked, ranked, right=right, out_int32=True) for right in (False, True))
    return torch.maximum(start, first), torch.minimum(stop, last)

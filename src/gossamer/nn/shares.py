"""`attend_runs` where one side is short, in shares: a GPU's programs then have something to do, all of them.

A program takes one tile of queries, or for the gradients of keys one tile of keys. A few queries that see 65,536 keys
are one tile, and so are a few keys that 65,536 queries see: one program would walk the whole sequence while the others
stand idle. So the long side is cut into shares, and each share has the short side to itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..runs import attend_runs

TILE = 128
"""No kernel's tile is longer, and each is a divisor of it."""
PROGRAMS = 264
"""Two for each processor of an H200; fewer leave some idle, and more do little harm."""
LEAST = 1024
"""A share is worth its own copy of the short side from so many positions on."""


def shares_for(x: Float[Tensor, "B H N D"], few: int) -> int:
    """How many shares the positions of `x` have, so that tiles of `few` positions fill a GPU; 1 on a CPU."""
    if not x.is_cuda:
        return 1
    tiles = x.shape[0] * x.shape[1] * -(-few // TILE)
    return max(min(-(-PROGRAMS // tiles), x.shape[2] // LEAST), 1)


def attend_to_few(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B H K D"],
    v: Float[Tensor, "B H K D"],
    start: Int[Tensor, "B Q"],
    stop: Int[Tensor, "B Q"],
    *,
    shares: int,
) -> tuple[Float[Tensor, "B H Q D"], Float[Tensor, "B H Q"]]:
    """`attend_runs` of many queries to few keys, with its log-sum-exp; each share of queries has a copy of the keys."""
    if shares > 1:
        length = TILE * -(-k.shape[2] // TILE)
        k, v = (_copies(F.pad(x, (0, 0, 0, length - x.shape[2])), shares) for x in (k, v))
        share = -(-q.shape[2] // shares)
        share = TILE * -(-share // TILE)  # a tile of queries sees one copy
        ahead = torch.arange(q.shape[2], device=q.device, dtype=torch.int32) // share * length
        start, stop = start + ahead, stop + ahead
    return attend_runs(q, k, v, start, stop, return_lse=True)


def attend_by_few(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B H K D"],
    v: Float[Tensor, "B H K D"],
    start: Int[Tensor, "B Q"],
    stop: Int[Tensor, "B Q"],
    *,
    shares: int,
) -> Float[Tensor, "B H Q D"]:
    """`attend_runs` of few queries to many keys; each share of keys has a copy of the queries."""
    if shares == 1:
        return attend_runs(q, k, v, start, stop)
    queries = q.shape[2]
    rows = TILE * -(-queries // TILE)  # a tile of queries sees one share
    share = -(-k.shape[2] // shares)
    first = share * torch.arange(shares, device=q.device, dtype=torch.int32)[:, None]  # [S, 1]
    last = (first + share).clamp(max=k.shape[2])
    first = first.clamp(max=k.shape[2])
    start, stop = (_ends(x, first, last, rows) for x in (start, stop))
    copies = _copies(F.pad(q, (0, 0, 0, rows - queries)), shares)
    out, lse = attend_runs(copies, k, v, start, stop, return_lse=True)
    out, lse = (x.unflatten(2, (shares, rows))[:, :, :, :queries] for x in (out, lse))
    # What sees nothing in any share has zeros in each: any weights do.
    weights = lse.masked_fill(lse == -torch.inf, torch.finfo(lse.dtype).min).softmax(2)
    return (weights[..., None].to(out.dtype) * out).sum(2)


def _copies(x: Float[Tensor, "B H N D"], count: int) -> Float[Tensor, "B H M D"]:
    """`x` several times, one after the other."""
    return x[:, :, None].expand(-1, -1, count, -1, -1).flatten(2, 3)


def _ends(ends: Int[Tensor, "B Q"], first: Tensor, last: Tensor, rows: int) -> Int[Tensor, "B M"]:
    """Ends of runs, cut to each share, and for rows up to `rows` those of the last one."""
    ends = torch.cat([ends, ends[:, -1:].expand(-1, rows - ends.shape[1])], 1)
    return ends[:, None].clamp(first, last).flatten(1)

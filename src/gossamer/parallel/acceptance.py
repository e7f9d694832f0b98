"""Whether a backend that was asked for takes what every process is to compute: known before anything travels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ..kernels import Softmax
from ..ops.choice import Call, choice
from ..patterns.base import Pattern
from ..patterns.section import counted
from .course import Course, course
from .shards import Shards
from .softmax_part import Scores


def require_accepted(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, shards: Shards, scores: Scores) -> None:
    """Refuses in every process what a single one would refuse, for which the others would wait.

    Where no backend is named, each part finds one that takes it.

    Raises:
        Unsupported: The named backend does not take a part of some process.
    """
    *settings, backend = scores.settled(q.shape[-1])
    if backend is None:
        return
    call = Call.of(q, k, v, None, "", Softmax(*settings))
    backward = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    sizes = {name: _sized(shape, shape[1], 0) for name, shape in (("q", call.q), ("k", call.k), ("v", call.v))}
    _require_accepted(pattern, shards.bounds, call._replace(**sizes), backward, backend)  # the same in all processes


@lru_cache(maxsize=256)
def _require_accepted(pattern: Pattern, bounds: tuple[int, ...], call: Call, backward: bool, backend: str) -> None:
    for rank, (first, stop) in enumerate(pairwise(bounds)):
        way = course(pattern, call.q[1], call.k[1], bounds, rank, call.definitions)
        for text, (heads, queries), (key_heads, keys) in _calls(way, stop - first):
            part = call._replace(
                pattern=text,
                q=_sized(call.q, heads.stop - heads.start, queries),
                k=_sized(call.k, key_heads.stop - key_heads.start, keys),
                v=_sized(call.v, key_heads.stop - key_heads.start, keys),
            )
            for backwards in (False, True) if backward else (False,):
                choice(part._replace(backward=backwards), backend)


def _calls(way: Course, held: int) -> Iterator[tuple[str, tuple[slice, int], tuple[slice, int]]]:
    """(pattern, heads and number of queries, heads and number of keys) of each call of a process with `held` tokens."""
    for each in way.passes:
        come = 0 if each.part is None else sum(way.parts[each.part].received)
        yield each.text, (each.queries, held), (each.keys, held + come)
    for part in way.parts:
        for side in part.sides:
            queries, keys = (span.stop - span.start for span in (side.queries, side.keys))
            yield side.text, (part.heads.queries, queries), (part.heads.keys, keys)
        if part.rows is not None:
            every = sum(map(counted, part.rows.of_ranks))
            yield part.rows.text, (part.heads.queries, every), (part.heads.keys, held)


def _sized(shape: torch.Size, heads: int, length: int) -> torch.Size:
    batch, _, _, width = shape
    return torch.Size((batch, heads, length, width))

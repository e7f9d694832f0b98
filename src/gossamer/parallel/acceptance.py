"""Whether a backend that was asked for takes what every process is to compute: known before anything travels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from ..kernels import Softmax
from ..ops.choice import Call, choice
from ..patterns.base import Pattern
from .shards import Shards
from .softmax_part import Scores

CallsOf = Callable[[Pattern, Call, tuple[int, ...], int], Iterator[Call]]
"""(pattern, a call with the heads of all tokens, bounds of all shards, rank) -> the calls of that process."""


def require_accepted(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, shards: Shards, scores: Scores, *, calls_of: CallsOf
) -> None:
    """Refuses in every process what a single one would refuse, for which the others would wait.

    Where no backend is named, each call finds one that takes it. Processes are to want gradients alike, and to have
    devices of one kind: the others' are judged by this one's.

    Raises:
        Unsupported: The named backend does not take a call of some process, or its gradients, where they are wanted.
    """
    scale, softcap, dropout, backend = scores.settled(q.shape[-1])
    if backend is None:
        return
    own = Call.of(q, k, v, None, "", Softmax(scale, softcap, dropout))
    call = part_of(own, "", q.shape[1], 0, k.shape[1], 0)
    backward = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    _require_accepted(pattern, call, shards.bounds, calls_of, backward, backend)


@lru_cache(maxsize=256)
def _require_accepted(
    pattern: Pattern, call: Call, bounds: tuple[int, ...], calls_of: CallsOf, backward: bool, backend: str
) -> None:
    """Asks for the calls of all processes, whoever asks."""
    for rank in range(len(bounds) - 1):
        for each in calls_of(pattern, call, bounds, rank):
            for backwards in (False, True) if backward else (False,):
                choice(each._replace(backward=backwards), backend)


def part_of(call: Call, text: str, heads: int, queries: int, key_heads: int, keys: int) -> Call:
    """The call for another pattern, given as text, with other numbers of heads and tokens."""
    batch, _, _, width = call.q
    of_values = call.v[3]
    return call._replace(
        pattern=text,
        q=torch.Size((batch, heads, queries, width)),
        k=torch.Size((batch, key_heads, keys, width)),
        v=torch.Size((batch, key_heads, keys, of_values)),
    )

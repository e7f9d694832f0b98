"""`attend_shards`: attention of a sequence whose tokens lie in several processes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ops.boundary import unobserved
from ..patterns.base import Pattern
from . import keys
from .acceptance import require_accepted
from .checks import checked
from .course import Course, calls_of, course
from .keys import put, taken
from .own import gradients_over_heads, over_heads, own_of
from .rows import guests_of
from .shards import Shards
from .softmax_part import Scores


@torch.compiler.disable  # processes meet in here
def attend_shards(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G N D"],
    v: Float[Tensor, "B G N Dv"],
    pattern: Pattern,
    shards: Shards,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    backend: str | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """What `attend` gives the whole sequence, for the tokens that this process holds; every process calls it.

    Keys and values that its queries read of others are sent while those that it holds are attended to, and their
    gradients come back while it makes its own. A window sends its last keys, whatever the length of the sequence, over
    as many processes as it reaches; keys that many queries see (strided, sinks, global ones) are sent to who sees
    them; blocks are sent if some query sees one. Queries that see much (`.T` of a few keys) travel themselves, and
    their parts of one softmax are joined by log-sum-exp. So bytes follow the plan, and never the pairs.

    Args:
        q, k, v: The tokens `shards.first … shards.stop - 1` of each sequence.
        shards: Who holds what; the same cuts in every process.

    The others are those of `attend`. Dropout is drawn in each process from its own generator.

    Raises:
        ValueError: As `attend` does, and where the tensors are not as long as the shard.
        Unsupported: `backend` does not take a part of some process, or its gradients; all of them raise it.
    """
    scores = Scores(scale, softcap, dropout, backend)
    q, k, v = checked(q, k, v, pattern, shards, scores)
    require_accepted(q, k, v, pattern, shards, scores, calls_of=calls_of)
    way = course(pattern, q.shape[1], k.shape[1], shards.bounds, shards.rank, Pattern.definitions)
    return _AttendShards.apply(q, k, v, way, shards, scores)


class _AttendShards(torch.autograd.Function):
    """One softmax over what is here and what comes; its backward goes over the same parts.

    The backward of a part needs the output and the log-sum-exp of the whole softmax alone: so nothing is merged there,
    and no log-sum-exp has a gradient.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, way: Course, shards: Shards, scores: Scores) -> Tensor:
        trip = keys.depart(k, v, way, shards)
        own = own_of(way, scores, q.device)
        found = [(each.place, *each.forward(q, k, v)) for each in own if not each.waits]
        come = keys.arrive(trip, way, scores, q.device)
        found += [(each.place, *each.forward(q, k, v, come)) for each in own if each.waits]
        out, lse = over_heads(found, q, v)
        if not unobserved((q, k, v)):  # who keeps what operators gave, as selective checkpointing does, needs it whole
            out, lse = out.clone(), lse.clone()
        for some in come:
            some.merge(q, out, lse)
        guests = guests_of(way, shards, scores, q.device)
        for some in guests:
            some.forward(q, k, v, out, lse)
        ctx.save_for_backward(q, k, v, out, lse, *(x for some in come for x in (some.k, some.v)))
        ctx.way, ctx.shards, ctx.own, ctx.guests = way, shards, own, guests
        ctx.computed = [(some.part, some.sides) for some in come]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[bad-override]
        (grad_out,) = gradients
        q, k, v, out, lse, *received = ctx.saved_tensors
        pairs = zip(received[::2], received[1::2], strict=True)
        come = [keys.Come(part, *pair, sides) for (part, sides), pair in zip(ctx.computed, pairs, strict=True)]
        apart = [some.backward(grad_out, q, k, v, out, lse) for some in ctx.guests]
        if ctx.guests:  # these queries are done: what follows is of the others
            grad_out = grad_out.clone()
            for some in ctx.guests:
                put(grad_out[some.own], some.mine, torch.zeros_like(taken(grad_out[some.own], some.mine)))
        of_sides = [some.backward(grad_out, q, out, lse) for some in come]
        returned, found = [(dk, dv) for _, dk, dv in of_sides], []
        for each in (each for each in ctx.own if each.waits):
            dq, *of_keys = each.backward(grad_out, q, k, v, (out, lse), come)
            some = come[each.place.part]
            others, mine = zip(*map(some.apart, of_keys), strict=True)
            returned[each.place.part] = others
            found.append((each.place, dq, *mine))
        trip = keys.give_back(returned, come, ctx.shards)
        found += [(each.place, *each.backward(grad_out, q, k, v, (out, lse))) for each in ctx.own if not each.waits]
        dq, dk, dv = gradients_over_heads(found, q, k, v)
        for some, (of_queries, _, _) in zip(come, of_sides, strict=True):
            some.add(of_queries, dq)
        for some, (of_rows, *of_keys) in zip(ctx.guests, apart, strict=True):
            some.add(of_rows, dq, of_keys, (dk, dv))
        keys.take_back(trip, dk, dv, ctx.way)
        return dq, dk, dv, None, None, None

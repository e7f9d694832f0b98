"""`attend_by_heads`: every process attends with some of the heads to the whole sequence (DeepSpeed-Ulysses)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..attention import attend
from ..ops.choice import Call
from ..patterns import PerHead
from ..patterns.base import Pattern
from ..patterns.parse import checked_text
from .acceptance import part_of, require_accepted
from .checks import checked
from .exchange import exchanged
from .shards import Shards
from .softmax_part import Scores


@torch.compiler.disable  # processes meet in here
def attend_by_heads(
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

    Tokens are exchanged for heads: each process gets all tokens of its share of the heads, attends, and sends the
    outputs back. So any pattern runs as in one process, and what is sent grows with the tokens and not with what they
    see: for windows and the like `attend_shards` sends less. Jacobs and others, 2023 (arXiv 2309.14509).

    Args:
        q, k, v: The tokens `shards.first … shards.stop - 1` of each sequence.
        shards: Who holds what; the same cuts in every process.

    The others are those of `attend`.

    Raises:
        ValueError: The key heads cannot be shared out evenly over the processes; or as `attend` does.
        Unsupported: `backend` does not take the heads of some process, or their gradients; all of them raise it.
    """
    scores = Scores(scale, softcap, dropout, backend)
    q, k, v = checked(q, k, v, pattern, shards, scores)
    heads, key_heads = q.shape[1], k.shape[1]
    if key_heads % shards.count:
        raise ValueError(
            f"k has {key_heads} heads, which {shards.count} processes cannot share evenly; give a number of processes "
            f"that divides them, or exchange keys with attend_shards"
        )
    require_accepted(q, k, v, pattern, shards, scores, calls_of=_calls_of)
    q, k, v = (_ToHeads.apply(x, shards) for x in (q, k, v))
    own = _of_process(pattern, heads, shards.count, shards.rank)
    out = attend(q, k, v, own, scale=scale, dropout=dropout, softcap=softcap, backend=backend)
    return _ToTokens.apply(out, shards)


class _ToHeads(torch.autograd.Function):
    """[B, H, own tokens, D] of every process to [B, own heads, N, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: Shards) -> Tensor:
        ctx.shards = shards
        return _to_heads(x, shards)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[bad-override]
        return _to_tokens(gradients[0], ctx.shards), None


class _ToTokens(torch.autograd.Function):
    """The way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: Shards) -> Tensor:
        ctx.shards = shards
        return _to_tokens(x, shards)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[bad-override]
        return _to_heads(gradients[0], ctx.shards), None


def _to_heads(x: Tensor, shards: Shards) -> Tensor:
    batch, heads, _, width = x.shape
    each = heads // shards.count
    return torch.cat(
        _exchanged(x.split(each, dim=1), [(batch, each, length, width) for length in shards.sizes], shards), 2
    )


def _to_tokens(x: Tensor, shards: Shards) -> Tensor:
    batch, each, _, width = x.shape
    shape = batch, each, shards.stop - shards.first, width
    return torch.cat(_exchanged(x.split(shards.sizes, dim=2), [shape] * shards.count, shards), dim=1)


def _exchanged(pieces: tuple[Tensor, ...], shapes: list[tuple[int, ...]], shards: Shards) -> list[Tensor]:
    awaited = [[(shape, pieces[0].dtype)] for shape in shapes]
    return [piece for (piece,) in exchanged([[piece] for piece in pieces], awaited, shards, pieces[0].device)]


def _calls_of(pattern: Pattern, call: Call, bounds: tuple[int, ...], rank: int) -> Iterator[Call]:
    """The call of one process, as `acceptance.CallsOf` says."""
    count, heads, key_heads = len(bounds) - 1, call.q[1], call.k[1]
    text = checked_text(_of_process(pattern, heads, count, rank))
    yield part_of(call, text, heads // count, bounds[-1], key_heads // count, bounds[-1])


def _of_process(pattern: Pattern, heads: int, count: int, rank: int) -> Pattern:
    """The pattern of the neighbouring heads that one of `count` processes has."""
    first, last = (place * (heads // count) for place in (rank, rank + 1))
    members = [
        (shared, min(stop, last) - max(start, first))
        for start, stop, shared in pattern.groups(heads)
        if start < last and stop > first
    ]
    return members[0][0] if len(members) == 1 else PerHead(members)

"""Tokens of all earlier shards behind one another, for attention that chooses at run time what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .exchange import exchanged, form_of
from .shards import Shards


@torch.compiler.disable  # processes meet in here
def gathered_before(new: Sequence[Float[Tensor, "B *_ N _"]], shards: Shards) -> list[Float[Tensor, "B *_ K _"]]:
    """What all processes up to this one hold of each thing: positions 0 … `shards.stop - 1`; every process calls it.

    Gradients travel back to where the tokens are held, and are added up there in at least float32.
    """
    return list(_Gathered.apply(shards, *new))


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shards: Shards, *new: Tensor) -> tuple[Tensor, ...]:
        ctx.shards = shards
        parcels = [new if rank >= shards.rank else () for rank in range(shards.count)]
        awaited = [
            [((*x.shape[:-2], length, x.shape[-1]), x.dtype) for x in new] if rank < shards.rank else []
            for rank, length in enumerate(shards.sizes)
        ]
        come = exchanged(parcels, awaited, shards, new[0].device)
        return tuple(torch.cat(pieces, dim=-2) for pieces in zip(*come[: shards.rank + 1], strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[bad-override]
        shards = ctx.shards
        pieces = [x.split(shards.sizes[: shards.rank + 1], dim=-2) for x in gradients]
        parcels = [[some[rank] for some in pieces] if rank <= shards.rank else [] for rank in range(shards.count)]
        forms = [form_of(some[-1]) for some in pieces]
        awaited = [forms if rank > shards.rank else [] for rank in range(shards.count)]
        come = exchanged(parcels, awaited, shards, gradients[0].device)
        return None, *map(_sum, zip(*come[shards.rank :], strict=True))


def _sum(pieces: tuple[Tensor, ...]) -> Tensor:
    wide = torch.promote_types(pieces[0].dtype, torch.float32)
    total = pieces[0].to(wide)
    for piece in pieces[1:]:
        total = total + piece
    return total.to(pieces[0].dtype)

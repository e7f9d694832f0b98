"""Scores of an index and the mass of attention at chosen keys in plain PyTorch, a block of queries at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..chosen import Heads, Index

ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
"""About so many numbers a block holds: few enough for a small part of memory, enough to be worth a call."""


class Tiled:
    """Runs on every device, in float64, float32, bfloat16 and float16."""

    name = "tiled"

    def refuses(self, q: Tensor) -> str | None:
        """Never: the operators take only what it computes."""
        return None

    def scores(self, index: Index) -> Tensor:
        """[B, Q, n], as `Road` says."""
        found = index.weights.new_empty(index.places.shape)
        for part in _parts(index.q, index.places):
            _, products, _ = _products(index, part)
            found[:, part] = (products * index.weights[:, part, :, None]).sum(2)
        return found.masked_fill_(index.places < 0, -torch.inf)

    def scores_backward(self, index: Index, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(dq, dk, dweights), as `Road` says."""
        dq, dk = torch.empty_like(index.q), index.k.new_zeros(index.k.shape, dtype=index.wide)
        dweights = torch.empty_like(index.weights)
        grad = grad.masked_fill(index.places < 0, 0.0)
        for part in _parts(index.q, index.places):
            k, products, active = _products(index, part)
            of_scores = grad[:, part, None].to(index.wide)
            dweights[:, part] = (products * of_scores).sum(-1)
            of_products = of_scores * index.weights[:, part, :, None]  # [B, b, J, n]
            if active is not None:
                of_products = of_products * active
            dq[:, :, part] = (of_products @ k).transpose(1, 2)
            _add(dk, index.places[:, part], of_products.mT @ index.q[:, :, part].transpose(1, 2).to(index.wide))
        return dq, dk.to(index.k.dtype), dweights

    def refuses_mass(self, heads: Heads) -> str | None:
        """Never, as of scores."""
        return None

    def mass(self, heads: Heads) -> Tensor:
        """[B, Q, n], as `MassRoad` says."""
        q, k, places = heads.q, heads.k, heads.places
        wide, groups = torch.promote_types(q.dtype, torch.float32), k.shape[1]
        found = q.new_zeros(places.shape, dtype=wide)
        lse = heads.lse.masked_fill(heads.lse == -torch.inf, torch.inf)  # who sees nothing looks nowhere
        for part in _parts(q, places):
            for group, (own, norm) in enumerate(zip(q.chunk(groups, 1), lse.chunk(groups, 1), strict=True)):
                keys = _gathered(k[:, group], places[:, part]).to(wide)
                score = own[:, :, part].transpose(1, 2).to(wide) @ keys.mT * heads.scale  # [B, b, R, n]
                found[:, part] += (score - norm[:, :, part].transpose(1, 2)[..., None]).exp().sum(2)
        return found.masked_fill_(places < 0, 0.0)


TILED_CHOSEN = Tiled()


def _parts(q: Tensor, places: Tensor) -> Iterator[slice]:
    """Queries that are computed together."""
    batch, heads, queries, width = q.shape
    step = max(1, ELEMENTS["cuda" if q.is_cuda else "cpu"] // max(1, batch * places.shape[2] * (heads + width)))
    for first in range(0, queries, step):
        yield slice(first, min(first + step, queries))


def _gathered(k: Tensor, places: Tensor) -> Tensor:
    """[B, b, n, D]: the keys at places, zeros where none stands."""
    sequence = torch.arange(k.shape[0], device=k.device)[:, None, None]
    return k[sequence, places.clamp(min=0).long()].masked_fill_((places < 0)[..., None], 0.0)


def _products(index: Index, part: slice) -> tuple[Tensor, Tensor, Tensor | None]:
    """(keys [B, b, n, D], what heads say of them [B, b, J, n], where that has a slope, or None for everywhere)."""
    k = _gathered(index.k, index.places[:, part]).to(index.wide)
    products = index.q[:, :, part].transpose(1, 2).to(index.wide) @ k.mT
    return (k, products.relu(), products > 0) if index.relu else (k, products, None)


def _add(total: Tensor, places: Tensor, part: Tensor) -> None:
    """Adds [B, b, n, D] to the keys [B, K, D] at places; where none stands, zeros to the first key."""
    lane = torch.arange(total.shape[0], device=total.device)[:, None, None] * total.shape[1]
    every, place, part = total.flatten(0, 1), (places.clamp(min=0).long() + lane).flatten(), part.flatten(0, 2)
    if total.is_cuda:  # it sorts first; index_add_ there adds in whatever order threads arrive
        every.index_put_((place,), part, accumulate=True)
    else:
        every.index_add_(0, place, part)

"""How much of dense attention's mass a pattern keeps, from queries, keys and log-sum-exp: nothing n×n is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..attention import attend
from ..patterns import Pattern
from .candidates import dense

Rectangle = tuple[range, range]
"""Positions of some queries, and of some keys."""


@dataclass(frozen=True, eq=False)
class DenseAttention:
    """What one layer's dense attention was computed from, and its log-sum-exp.

    Args:
        lse: Natural log-sum-exp of the scores under this layer's own pattern, sinks included.
        window: How many keys a query of this layer sees, itself included; None: all before it.
        softcap: Scores become `softcap · tanh(score / softcap)`.
        sinks: One logit a head that joins the softmax's denominator only.
    """

    q: Float[Tensor, "B H N D"]
    k: Float[Tensor, "B G N D"]
    lse: Float[Tensor, "B H N"]
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Float[Tensor, " H"] | None = None

    @property
    def pattern(self) -> Pattern:
        """What the layer sees without Gossamer."""
        return dense(self.window)


def attend_densely(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G N D"],
    v: Float[Tensor, "B G N Dv"],
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
) -> tuple[Float[Tensor, "B H N Dv"], DenseAttention]:
    """The layer's own causal attention, and what `kept_mass` needs to know of it.

    Raises:
        ValueError: As `attend` does, or the queries are not as many as the keys.
    """
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"q has {q.shape[2]} queries and k {k.shape[2]} keys; give a whole sequence, without a cache")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    sinks = None if sinks is None else sinks.to(q.dtype)
    out, lse = attend(q, k, v, dense(window), scale=scale, softcap=softcap, sinks=sinks, return_lse=True)
    return out, DenseAttention(q, k, lse, scale, window, softcap, sinks)


@torch.no_grad()
def kept_mass(seen: DenseAttention, candidates: Sequence[Pattern], *, tile: int = 512) -> Float[Tensor, "H C"]:
    """The share of each head's attention that falls on keys which the candidate allows, for the average query.

    What a learned sink takes is kept by every candidate, so dense attention itself keeps exactly 1. Batches are
    averaged; sums are in float32.

    Args:
        tile: Side of the squares that are computed one at a time; a larger one takes more memory.
    """
    batch, _, length, _ = seen.q.shape
    kept = _taken_by_sinks(seen)[:, None].repeat(1, len(candidates))
    for rectangle in _rectangles(seen.pattern, length, tile):
        kept += _kept_within(rectangle, _probabilities(seen, rectangle), candidates) / (batch * length)
    return kept


def _taken_by_sinks(seen: DenseAttention) -> Float[Tensor, " H"]:
    if seen.sinks is None:
        return torch.zeros(seen.q.shape[1], device=seen.q.device)
    return (seen.sinks.float()[:, None] - seen.lse.float()).exp().mean((0, 2))


def _rectangles(pattern: Pattern, length: int, size: int) -> Iterator[Rectangle]:
    """The squares that hold a pair which `pattern` allows; the last ones are cut off at `length`."""
    runs = [range(first, min(first + size, length)) for first in range(0, length, size)]
    for queries in runs:
        for keys in runs:
            may, _ = _bounds(pattern, (queries, keys))
            if may:
                yield queries, keys


def _probabilities(seen: DenseAttention, rectangle: Rectangle) -> Float[Tensor, "H q k"]:
    """The probabilities within the rectangle in float32, summed over the batch."""
    queries, keys = (slice(positions.start, positions.stop) for positions in rectangle)
    k = seen.k[:, :, keys].float().repeat_interleave(seen.q.shape[1] // seen.k.shape[1], dim=1)  # [B, H, k, D]
    scores = seen.scale * seen.q[:, :, queries].float() @ k.mT  # [B, H, q, k]
    if seen.softcap is not None:
        scores = seen.softcap * (scores / seen.softcap).tanh()
    hidden = torch.from_numpy(~_visible(seen.pattern, rectangle)).to(scores.device)
    return (scores - seen.lse[:, :, queries, None].float()).exp().masked_fill(hidden, 0).sum(0)


def _kept_within(
    rectangle: Rectangle, mass: Float[Tensor, "H q k"], candidates: Sequence[Pattern]
) -> Float[Tensor, "H C"]:
    mass = mass.flatten(1)  # [H, qk]
    kept = torch.zeros(len(mass), len(candidates), device=mass.device)
    partly = []
    for index, candidate in enumerate(candidates):
        may, must = _bounds(candidate, rectangle)
        if must:
            kept[:, index] = mass.sum(1)
        elif may:
            partly.append(index)
    if partly:
        masks = np.stack([_visible(candidates[index], rectangle).ravel() for index in partly])
        kept[:, partly] = mass @ torch.from_numpy(masks).to(mass.device, mass.dtype).T
    return kept


def _bounds(pattern: Pattern, rectangle: Rectangle) -> tuple[bool, bool]:
    """Whether some pair of the rectangle may be allowed, and whether all are."""
    may, must = pattern.bounds(*(np.array([end]) for positions in rectangle for end in (positions[0], positions[-1])))
    return bool(may.any()), bool(must.all())


def _visible(pattern: Pattern, rectangle: Rectangle) -> np.ndarray:
    """[q, k], True where the query may see the key."""
    queries, keys = (np.asarray(positions) for positions in rectangle)
    return np.broadcast_to(pattern.allows(queries[:, None], keys[None, :]), (len(queries), len(keys)))

"""Where attention goes, measured from queries, keys and log-sum-exp in tiles: nothing n×n is ever made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..patterns.base import Bools, Pattern
from ..patterns.clauses import Extent


@dataclass(frozen=True, eq=False)
class Tile:
    """The attention probabilities of some heads between some queries and some keys, by their positions."""

    heads: slice
    queries: range
    keys: range
    probabilities: Float[Tensor, "B h q k"]


def attention_maps(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B G K D"],
    lse: Float[Tensor, "B H Q"],
    *,
    pattern: Pattern,
    scale: float | None = None,
    cells: int = 64,
    tile: int = 512,
) -> Float[Tensor, "H R C"]:
    """The share of attention that the queries of cell i spend, on average, on the keys of cell j.

    Queries and keys are each cut into at most `cells` runs of nearly equal length, so with as many cells as
    positions the result is the matrix of probabilities itself. Every row sums to 1, or to less where some of
    its queries see nothing. Batches are averaged.

    Args:
        lse: Natural log-sum-exp of the scaled scores, as `attend(..., return_lse=True)` gives it.
        pattern: The pattern that `lse` was computed under.
        scale: What the scores were multiplied by; None means 1/√D.
        tile: Side of the squares that are computed one at a time; a larger one takes more memory.

    Raises:
        ValueError: `cells` is below 1, or `pattern` is written for another number of heads.
    """
    if cells < 1:
        raise ValueError(f"attention_maps: cells is {cells}; give at least 1")
    queries, keys = q.shape[2], k.shape[2]
    rows, columns = min(cells, queries), min(cells, keys)
    maps = torch.zeros(q.shape[1], rows, columns, device=q.device)
    for part in probability_tiles(q, k, lse, pattern=pattern, scale=scale, size=tile):
        row = _membership(part.queries, keys - queries, queries, rows).to(q.device)
        column = _membership(part.keys, 0, keys, columns).to(q.device)
        maps[part.heads] += torch.einsum("bhqk,qr,kc->hrc", part.probabilities, row, column)
    members = torch.bincount(torch.arange(queries, device=q.device) * rows // max(queries, 1), minlength=rows)
    return maps / (members[:, None] * q.shape[0])


def mass_by_distance(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B G K D"],
    lse: Float[Tensor, "B H Q"],
    *,
    pattern: Pattern,
    edges: tuple[int, ...],
    scale: float | None = None,
    tile: int = 512,
) -> Float[Tensor, "H bins"]:
    """The share of attention that the average query spends on keys at `edges[i] <= distance < edges[i + 1]`.

    The distance is counted in tokens, to either side; batches are averaged. `distance_edges` makes edges that
    cover a length.

    Raises:
        ValueError: `edges` do not rise, or `pattern` is written for another number of heads.
    """
    if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"mass_by_distance: edges is {edges}; give at least two rising distances")
    cuts = torch.tensor(edges, device=q.device)
    mass = torch.zeros(q.shape[1], len(edges) + 1, device=q.device)
    for part in probability_tiles(q, k, lse, pattern=pattern, scale=scale, size=tile):
        query, key = (torch.tensor(positions, device=q.device) for positions in (part.queries, part.keys))
        distance = (query[:, None] - key[None, :]).abs()  # [q, k]
        bins = torch.bucketize(distance, cuts, right=True).flatten()
        mass[part.heads] = mass[part.heads].index_add(1, bins, part.probabilities.sum(0).flatten(1))
    return mass[:, 1:-1] / max(q.shape[0] * q.shape[2], 1)


def distance_edges(length: int) -> tuple[int, ...]:
    """Bins for `mass_by_distance`: the token itself, then spans that double until they cover `length`.

    >>> distance_edges(10)
    (0, 1, 2, 4, 8, 16)
    """
    return (0, *(2**power for power in range(max(length - 1, 1).bit_length() + 1)))


def probability_tiles(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B G K D"],
    lse: Float[Tensor, "B H Q"],
    *,
    pattern: Pattern,
    scale: float | None = None,
    size: int = 512,
) -> Iterator[Tile]:
    """Yields the probabilities of every `size` × `size` tile that holds a visible pair, in float32."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    extent = Extent.aligned(q.shape[2], k.shape[2])
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # [B, H, K, D]
    for first, last, group in pattern.groups(q.shape[1]):
        heads = slice(first, last)
        for rows, columns in _tiles(group, extent, size):
            query, key = (slice(positions.start, positions.stop) for positions in (rows, columns))
            query = slice(query.start - extent.queries.start, query.stop - extent.queries.start)
            scores = scale * q[:, heads, query].float() @ k[:, heads, key].float().mT  # [B, h, q, k]
            hidden = torch.from_numpy(~_visible(group, rows, columns)).to(q.device)
            weights = (scores - lse[:, heads, query, None].float()).exp().masked_fill(hidden, 0)
            yield Tile(heads, rows, columns, weights)


def _tiles(pattern: Pattern, extent: Extent, size: int) -> Iterator[tuple[range, range]]:
    for q in range(extent.queries.start, extent.queries.stop, size):
        rows = range(q, min(q + size, extent.queries.stop))
        for column in range(extent.keys.start, extent.keys.stop, size):
            columns = range(column, min(column + size, extent.keys.stop))
            corners = (np.array([at]) for at in (rows[0], rows[-1], columns[0], columns[-1]))
            may, _ = pattern.bounds(*corners)
            if may.any():
                yield rows, columns


def _visible(pattern: Pattern, queries: range, keys: range) -> Bools:
    """[q, k], True where the query may see the key."""
    allowed = pattern.allows(np.asarray(queries)[:, None], np.asarray(keys)[None, :])
    return np.broadcast_to(allowed, (len(queries), len(keys)))


def _membership(positions: range, start: int, length: int, cells: int) -> Float[Tensor, "n cells"]:
    """One-hot rows: the cell that each position of the tile falls into."""
    cell = (torch.tensor(positions) - start) * cells // length
    return torch.nn.functional.one_hot(cell, cells).float()

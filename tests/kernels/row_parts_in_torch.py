"""What `kernels/hopper/row_parts.py` does, in PyTorch: the tests' reference, and a stand-in where no kernel can run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from gossamer.kernels.hopper.long_rows import LongRows


def write_merged(parts: tuple[Tensor, Tensor], long: LongRows, out: Tensor, lse: Tensor, within: Tensor | None) -> None:
    for rows, some in _each(long, out.shape[2]):
        outside = _outside(rows, within)
        some_out, some_lse = (x[:, :, some] for x in parts)
        some_lse = some_lse.masked_fill(outside[:, None, None], -torch.inf)
        before = lse[:, :, rows]
        found = torch.logsumexp(torch.cat([before[:, :, None], some_lse], 2), 2)
        weights = torch.exp(some_lse - found.masked_fill(found == -torch.inf, 0.0)[:, :, None])[..., None]
        out[:, :, rows] = torch.where(weights > 0, weights * some_out, 0.0).sum(2).to(out.dtype)
        lse[:, :, rows] = found


def write_sums(parts: Tensor, long: LongRows, total: Tensor, within: Tensor | None) -> None:
    for rows, some in _each(long, total.shape[2]):
        sums = parts[:, :, some].to(torch.promote_types(parts.dtype, torch.float32)).sum(2)
        total[:, :, rows] = sums.masked_fill(_outside(rows, within)[:, None, :, None], 0.0).to(total.dtype)


def _each(long: LongRows, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(positions [n] of each long row, rows [parts, n] of its parts)."""
    size, edges = long.table.size, pairwise(long.edges.tolist())
    for place, (first, last) in zip(long.places.tolist(), edges, strict=True):
        rows = torch.arange(place * size, min((place + 1) * size, length), device=long.places.device)
        inner = rows - place * size
        yield rows, torch.stack([part * size + inner for part in range(first, last)])


def _outside(rows: Tensor, within: Tensor | None) -> Tensor:
    """bool [B or 1, n]."""
    if within is None:
        return torch.zeros_like(rows, dtype=torch.bool)[None]
    first, last = within.T[..., None]
    return (rows < first) | (rows >= last)

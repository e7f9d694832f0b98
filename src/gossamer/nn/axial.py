"""Axial position embeddings: tables of √N rows in place of one of N (Kitaev et al. 2020, arXiv 2001.04451)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..patterns.base import require_integer, require_some


class AxialPositions(nn.Module):
    """Position `i` is a place on a grid of `shape`, and its embedding the rows of its coordinates side by side.

    The grid is filled row by row; axis `a` has a table of `shape[a]` rows, `widths[a]` wide. So 2¹⁶ positions of width
    768 take 128 · 256 + 512 · 512 numbers in place of 50 million.

    >>> AxialPositions((4, 8), (3, 5))(30).shape
    torch.Size([1, 30, 8])

    Raises:
        ValueError: `shape` and `widths` are not as many, or one of their entries is no positive integer.
    """

    def __init__(self, shape: Sequence[int], widths: Sequence[int], *, dropout: float = 0.0):
        super().__init__()
        self.shape, self.widths = (
            tuple(require_integer("AxialPositions", f"an entry of {name}", entry, 1) for entry in entries)
            for name, entries in (
                ("shape", require_some("AxialPositions", "shape", shape)),
                ("widths", require_some("AxialPositions", "widths", widths)),
            )
        )
        if len(self.shape) != len(self.widths):
            raise ValueError(
                f"AxialPositions: shape is {self.shape} and widths is {self.widths}; give one width for each axis"
            )
        self.dropout = dropout
        axes = len(self.shape)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(*(rows if axis == other else 1 for other in range(axes)), width))
            for axis, (rows, width) in enumerate(zip(self.shape, self.widths, strict=True))
        )

    def forward(self, length: int, batch: int = 1) -> Float[Tensor, "B N E"]:
        """The embeddings of the first `length` positions; [1, N, E] unless dropout makes each sequence's its own.

        In training, dropout drops all positions that share their last coordinate, as in Hugging Face's Reformer.

        Raises:
            ValueError: The grid has fewer than `length` places.
        """
        if length > math.prod(self.shape):
            raise ValueError(
                f"AxialPositions: {length} positions do not fit the grid {self.shape} of {math.prod(self.shape)}; "
                "give fewer tokens, or a larger shape"
            )
        rows = -(-length // math.prod(self.shape[1:]))  # of the first axis; more are not needed
        grid = rows, *self.shape[1:]
        tables = (table[:rows] if axis == 0 else table for axis, table in enumerate(self.weights))
        spread = [table.expand(*grid, table.shape[-1]) for table in tables]
        found = torch.cat(spread, dim=-1).flatten(0, -2)[None, :length]  # [1, N, E]
        if not self.training or not self.dropout:
            return found
        kept = F.dropout(found.new_ones(batch, self.shape[-1], 1), self.dropout)
        return found * kept.repeat(1, -(-length // self.shape[-1]), 1)[:, :length]

"""Several documents behind each other in one row, each as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..attention import attend
from ..patterns import Documents, Packed
from ..patterns.base import Pattern, require_integer


class Packing:
    """Makes a model read a row as the documents that are packed in it: none sees, or is seen by, another.

    `model(tokens, targets, cache=Packing(lengths))` gives each token the position, the visible keys and so the output
    that it has where its document is alone, run with `planned_length=capacity`. Global tokens and strides count from
    each document's start. The plan is made anew for each new `lengths`, in well under a millisecond for patterns of
    windows, strides and columns; patterns of random blocks take hundreds.

    >>> packing, x = Packing([2, 1]), torch.eye(3)[None, None]
    >>> packing.positions(3, x.device).tolist()
    [0, 1, 0]
    >>> from gossamer import Causal
    >>> packing.attend(0, 0 * x, 0 * x, x, Causal())[0, 0].tolist()  # what each token sees of whom
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]

    Args:
        lengths: Tokens of each document, from the first to the last.
        capacity: Tokens that a document may have: what an adaptive window is resolved from. By default those of the
            longest.

    Raises:
        ValueError: A length is no positive integer, there is none, or one is beyond `capacity`.
    """

    padding = None
    length = 0
    differentiable = True

    def __init__(self, lengths: Sequence[int], *, capacity: int | None = None):
        self.lengths = tuple(Documents(lengths).lengths)
        longest = max(self.lengths)
        self.capacity = longest if capacity is None else require_integer("Packing", "capacity", capacity, least=1)
        if longest > self.capacity:
            raise ValueError(
                f"Packing: a document has {longest} tokens, beyond capacity={self.capacity}; cut it, or give more"
            )
        self._packed: dict[Pattern, Packed] = {}

    @torch.compiler.disable  # another packing is no reason to compile anew
    def positions(self, tokens: int, device: torch.device) -> Int64[Tensor, " N"]:
        """Positions of the row's tokens, each counted from the start of its own document.

        Raises:
            ValueError: The documents are not as long together as the row.
        """
        if tokens != sum(self.lengths):
            raise ValueError(
                f"Packing: the documents have {sum(self.lengths)} tokens together, and the row {tokens}; give lengths "
                "that sum to the row's"
            )
        lengths = np.array(self.lengths)
        counted = np.arange(tokens) - np.repeat(lengths.cumsum() - lengths, lengths)
        return torch.from_numpy(counted).to(device, non_blocking=True)

    @torch.compiler.disable
    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G N D"],
        v: Float[Tensor, "B G N D"],
        pattern: Pattern,
        *,
        dropout: float = 0.0,
    ) -> Float[Tensor, "B H N D"]:
        """Attention within each document, over `pattern` from the document's own start."""
        return attend(q, k, v, self.within(pattern), dropout=dropout)

    def within(self, pattern: Pattern) -> Packed:
        """`pattern` from each document's own start; made once for all layers that have it."""
        if pattern not in self._packed:
            self._packed[pattern] = Packed(pattern, self.lengths)
        return self._packed[pattern]

    def extend(self, layer: int, new: Sequence[Float[Tensor, "B *_ N _"]]) -> list[Tensor]:
        """Refuses: attention that chooses its keys at run time does not know where a document begins.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Packing: this attention chooses its keys at run time, from other documents too; run each document alone"
        )

    def advance(self, tokens: int) -> None:
        """Nothing comes behind a packed row."""


def document_lengths(tokens: Int64[Tensor, "B N"], end: int) -> tuple[int, ...]:
    """Tokens of each document, row after row: one ends with each token `end`, and with its row.

    >>> document_lengths(torch.tensor([[5, 9, 5, 5], [9, 5, 9, 9]]), end=9)
    (2, 2, 1, 2, 1)
    """
    rows = (tokens == end).numpy(force=True)
    rows[:, -1:] = True
    ends = np.flatnonzero(rows) + 1
    return tuple(np.diff(ends, prepend=0).tolist())


def packed(
    tokens: Int64[Tensor, "B N"], targets: Int64[Tensor, "B N"], end: int
) -> tuple[Int64[Tensor, "1 M"], Int64[Tensor, "1 M"], Packing]:
    """The rows of a batch behind each other in one row, and the documents in it, which end with `end` and with a row.

    One row makes one launch of each kernel, however the documents lie. A document may have N tokens.

    >>> row, _, packing = packed(torch.tensor([[5, 9, 5], [5, 5, 5]]), torch.zeros(2, 3), end=9)
    >>> row.shape, packing.lengths, packing.capacity
    (torch.Size([1, 6]), (2, 1, 3), 3)
    """
    packing = Packing(document_lengths(tokens, end), capacity=tokens.shape[1])
    return tokens.reshape(1, -1), targets.reshape(1, -1), packing

"""From shards of tokens to the batch of any training step."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from ..models.gpt2 import IGNORED_TARGET
from ..tokenizer import load_tokenizer
from .config import Packing
from .journal import TOKENIZER
from .shards import Shards, Split, TokenRow, extent, require_window
from .share import WHOLE, Share
from .shuffle import Shuffle


class TokenDataset:
    """The windows of a split: shuffled for training, or in order for evaluation.

    The batch of a step depends on `seed` and the step alone, so there is nothing to save or restore. An epoch
    visits every window once in an order of its own, and each epoch cuts the row at other places.

    Args:
        folder: What `prepare` made.
        split: "training", or "validation" for the tokens at the end.
        packing: "documents" leaves out the targets that belong to another document than their token.

    Attributes:
        end_of_document: With packing, the token that every document ends with; else None.

    Raises:
        FileNotFoundError: `folder` holds no tokens.
        ValueError: The tokens do not agree with their sidecar, or the split is shorter than a window.
    """

    def __init__(
        self,
        folder: str | Path,
        split: Split,
        *,
        context_size: int,
        batch_size: int = 1,
        seed: int = 0,
        packing: Packing = "none",
    ):
        self.shards = Shards.read(folder)
        self.end_of_document = None if packing == "none" else load_tokenizer(Path(folder, TOKENIZER)).end_of_text
        require_window(self.shards, split, context_size)
        self._row = TokenRow(folder, self.shards)
        self._first, count = extent(self.shards, split)
        self._context, self._batch, self._seed = context_size, batch_size, seed
        # One window is given up, where there are several, to make room for the shift of an epoch.
        self.windows = max(1, (count - 1) // context_size - 1)
        self._slack = count - 1 - self.windows * context_size
        self._epoch, self._order = -1, Shuffle(self.windows, "")

    def batch(self, step: int, share: Share = WHOLE) -> tuple[Int64[Tensor, "B N"], Int64[Tensor, "B N"]]:
        """(tokens, the token after each) of training step `step`, counted from 0; -1 is a target that is left out.

        Args:
            share: Of the step's sequences, those that are read.
        """
        return self._tensors([self._drawn(step * self._batch + row) for row in share.among(self._batch)])

    def in_order(self, limit: int) -> Iterator[tuple[Int64[Tensor, "B N"], Int64[Tensor, "B N"]]]:
        """The first `limit` windows of the split, or all there are, in batches; the last may be short."""
        count = min(limit, (self._slack + self.windows * self._context) // self._context)
        for start in range(0, count, self._batch):
            windows = range(start, min(start + self._batch, count))
            yield self._tensors([window * self._context for window in windows])

    def _drawn(self, draw: int) -> int:
        epoch, place = divmod(draw, self.windows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, Shuffle(self.windows, f"{self._seed} {epoch}")
        return self._order[place] * self._context + self._order.number % (self._slack + 1)

    def _tensors(self, starts: list[int]) -> tuple[Tensor, Tensor]:
        rows: NDArray[np.int64] = np.stack(
            [self._row.stretch(self._first + start, self._context + 1) for start in starts]
        )
        if rows.max() >= self.shards.vocab_size:
            raise ValueError(
                f"the shards hold token {rows.max()}, and their tokenizer has {self.shards.vocab_size}; "
                "they were changed: prepare the tokens again in a new folder"
            )
        tokens, targets = map(torch.Tensor.contiguous, (torch.from_numpy(rows)[:, :-1], torch.from_numpy(rows)[:, 1:]))
        if self.end_of_document is not None:
            targets = targets.masked_fill(tokens == self.end_of_document, IGNORED_TARGET)
        return tokens, targets

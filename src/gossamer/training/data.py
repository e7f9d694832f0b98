"""From shards of tokens to the batch of any training step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from ..models.gpt2 import IGNORED_TARGET
from ..tokenizer import load_tokenizer
from .config import Packing
from .journal import TOKENIZER
from .shards import Shards, TokenRow
from .share import WHOLE, Share
from .sources import UnreadableText

Split = Literal["training", "validation"]


def require_window(shards: Shards, split: Split, context_size: int) -> None:
    """Refuse a split that is shorter than one window and the token after it."""
    _, count = _extent(shards, split)
    if count <= context_size:
        raise UnreadableText(
            f"the {split} split has {count} of the text's {shards.tokens} tokens, and a context_size of "
            f"{context_size} needs {context_size + 1}; give more text, a smaller model.context_size or "
            f"another data.validation_share than {shards.validation_share}"
        )


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
        self._first, count = _extent(self.shards, split)
        self._context, self._batch, self._seed = context_size, batch_size, seed
        # One window is given up, where there are several, to make room for the shift of an epoch.
        self.windows = max(1, (count - 1) // context_size - 1)
        self._slack = count - 1 - self.windows * context_size
        self._epoch, self._order, self._shift = -1, np.empty(0, np.int64), 0

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
            # random_raw is the one stream that numpy promises never to change
            noise = np.random.Philox(key=[self._seed, epoch]).random_raw(self.windows + 1)
            self._epoch, self._order = epoch, np.argsort(noise[1:], kind="stable")
            self._shift = int(noise[0] % np.uint64(self._slack + 1))
        return int(self._order[place]) * self._context + self._shift

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
            targets[tokens == self.end_of_document] = IGNORED_TARGET
        return tokens, targets


def _extent(shards: Shards, split: Split) -> tuple[int, int]:
    """(first token, tokens) of a split."""
    training = shards.tokens - shards.validation_tokens
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; give one of {', '.join(get_args(Split))}")
    return (0, training) if split == "training" else (training, shards.validation_tokens)

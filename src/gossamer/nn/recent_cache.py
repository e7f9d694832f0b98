"""One layer's vectors of the newest tokens, for a window, or for a block that is not whole yet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class RecentCache:
    """What a layer made of the newest tokens: as many of them stay as each call says.

    >>> cache, x = RecentCache(), torch.arange(6.0).view(1, 6, 1)
    >>> [cache.extend([piece], keep=1)[0].flatten().tolist() for piece in x.split(3, dim=1)]
    [[0.0, 1.0, 2.0], [2.0, 3.0, 4.0, 5.0]]
    """

    def __init__(self) -> None:
        self.seen = 0
        """Tokens of a sequence so far, most of which are no longer held."""
        self.rows: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """Memory that is taken."""
        return sum(rows.nbytes for rows in self.rows)

    def extend(self, new: Sequence[Float[Tensor, "B *_ N _"]], keep: int) -> list[Tensor]:
        """The tokens held with these behind them, [B, *G, M, D] each, of which the newest `keep` stay.

        Gradients reach `new`, and none an earlier call.
        """
        every = [torch.cat(pair, dim=-2) for pair in zip(self.rows, new, strict=True)] if self.rows else list(new)
        self.seen += new[0].shape[-2]
        first = max(every[0].shape[-2] - keep, 0)
        with torch.inference_mode(False):  # to be used in any mode
            self.rows = [x[..., first:, :].detach().clone() for x in every]
        return every

    def pick(self, order: Tensor) -> None:
        """Goes on with the sequences `order` [B'] of those held, as beam search asks."""
        with torch.inference_mode(False):
            self.rows = [rows.index_select(0, order.to(rows.device)) for rows in self.rows]

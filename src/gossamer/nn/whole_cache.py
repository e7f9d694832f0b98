"""One layer's vectors of all tokens so far, for attention that chooses at run time which of them it reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class WholeCache:
    """What a layer made of every token so far: any later query may ask for any of it.

    What that is, is up to the layer: latents and index keys, or keys, values and index keys. Memory doubles as it
    fills, so that a token costs its own bytes and no copy of the past.

    >>> cache, x = WholeCache(), torch.randn(1, 2, 100, 8)
    >>> for piece in x.split(7, dim=2):
    ...     (held,) = cache.extend([piece])
    >>> torch.equal(held, x), cache.seen
    (True, 100)
    """

    def __init__(self) -> None:
        self.seen = 0
        """Tokens of a sequence so far."""
        self.rows: list[Tensor] = []
        """For each thing that is held, the memory of it: [B, ..., slots, D], of which the first `seen` slots count."""

    @property
    def nbytes(self) -> int:
        """Memory that is taken, with the room for tokens to come."""
        return sum(rows.nbytes for rows in self.rows)

    def extend(self, new: Sequence[Float[Tensor, "B *_ N _"]], most: int | None = None) -> list[Tensor]:
        """All tokens so far with these behind them, [B, *G, K, D] each: `new` has the same things at every call.

        The result is memory of the cache, which later calls write behind. Where gradients are kept, it is a copy
        through which they reach `new`; none reaches an earlier call.

        Args:
            most: Tokens that will ever come; no more room than for them is taken.

        Raises:
            ValueError: The new tokens do not fit those held before, or each other.
        """
        self._require_alike(new)
        end = self.seen + new[0].shape[-2]
        before = [rows[..., : self.seen, :] for rows in self.rows]
        if not self.rows:
            self.rows = [_room(x, end) for x in new]
        elif end > self.rows[0].shape[-2]:
            room = max(end, min(2 * end, most or 2 * end))
            self.rows = [_moved(rows, self.seen, room) for rows in self.rows]
        for rows, x in zip(self.rows, new, strict=True):
            rows[..., self.seen : end, :] = x.detach()
        self.seen = end
        if torch.is_grad_enabled() and any(x.requires_grad for x in new):
            return [torch.cat(pair, dim=-2) for pair in zip(before, new, strict=True)] if before else list(new)
        return [rows[..., :end, :] for rows in self.rows]

    def pick(self, order: Tensor) -> None:
        """Goes on with the sequences `order` [B'] of those held, as beam search asks."""
        with torch.inference_mode(False):  # to be written to in any mode
            self.rows = [rows.index_select(0, order.to(rows.device)) for rows in self.rows]

    def _require_alike(self, new: Sequence[Tensor]) -> None:
        if not new or any(x.dim() < 3 or x.shape[0] != new[0].shape[0] or x.shape[-2] != new[0].shape[-2] for x in new):
            raise ValueError(
                f"new tokens are of shapes {[tuple(x.shape) for x in new]}; give [batch, ..., length, width], all of "
                f"one batch and one length"
            )
        if self.rows and [_kind(x) for x in new] != [_kind(rows) for rows in self.rows]:
            raise ValueError(
                f"new tokens are {[f'{x.dtype} {tuple(x.shape)}' for x in new]}, but the cache holds "
                f"{[f'{rows.dtype} {tuple(rows.shape)}' for rows in self.rows]}; give the next tokens of the sequences "
                f"that it began with, which differ in their length alone"
            )


def _kind(x: Tensor) -> tuple[object, ...]:
    return x.dtype, x.shape[:-2], x.shape[-1]


def _room(like: Tensor, slots: int) -> Tensor:
    """Memory that may be written to in any mode, whether it was taken in inference mode or not."""
    with torch.inference_mode(False):
        return like.new_empty(*like.shape[:-2], slots, like.shape[-1])


def _moved(rows: Tensor, held: int, slots: int) -> Tensor:
    larger = _room(rows, slots)
    larger[..., :held, :] = rows[..., :held, :]
    return larger

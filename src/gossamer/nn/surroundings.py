"""What stands around the tokens of a call, so that a model need not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..patterns.base import Pattern


class Surroundings(Protocol):
    """Where the tokens of a call stand in their sequence, and attention to what stands around them there.

    This is what a model's `cache` has to be: earlier tokens that are held (`KVCache`), other documents in the same
    row (`Packing`), or the rest of the sequence in other processes (`ContextShard`). The model's code is the same.
    """

    length: int
    """Tokens of the sequence before those of the next call."""
    capacity: int
    """Tokens that the whole sequence may have: what an adaptive window is resolved from."""
    padding: tuple[int, ...] | None
    """How many of each sequence's first tokens nobody sees."""
    differentiable: bool
    """Whether gradients go through it, so that a call may be repeated in the backward."""

    def positions(self, tokens: int, device: torch.device) -> Int64[Tensor, "*B N"]:
        """Positions of the next `tokens` tokens in what they belong to."""

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
        """Attention of the next tokens to all that they may see, over `pattern`."""

    def extend(self, layer: int, new: Sequence[Float[Tensor, "B *_ N _"]]) -> list[Tensor]:
        """What `layer` made of all tokens up to the last of these: [B, *G, K, D] for each thing in `new`."""

    def advance(self, tokens: int) -> None:
        """Counts `tokens` as come, after every layer has taken them."""

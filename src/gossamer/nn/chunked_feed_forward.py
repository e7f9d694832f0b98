"""A feed-forward block that takes some positions at a time."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..patterns.base import require_integer
from .activations import ACTIVATIONS


class ChunkedFeedForward(nn.Module):
    """Layer norm, linear, activation and linear again, on `chunk` positions at a time, or on all for 0.

    A position's result does not depend on the others, so chunks change no result. They bound what is `hidden` wide: in
    a forward without gradients, and in the backward of `ReversibleLayers`, which also goes chunk by chunk. Dropout acts
    on the hidden features, before the activation, and on the result.

    >>> ChunkedFeedForward(8, 32, chunk=3)(torch.zeros(1, 10, 8)).shape
    torch.Size([1, 10, 8])

    Raises:
        ValueError: A size is no integer or too small, or the activation is not known.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        chunk: int = 0,
        activation: str = "relu",
        dropout: float = 0.0,
        epsilon: float = 1e-12,
    ):
        super().__init__()
        for name, value, least in (("width", width, 1), ("hidden", hidden, 1), ("chunk", chunk, 0)):
            require_integer(type(self).__name__, name, value, least)
        if activation not in ACTIVATIONS:
            raise ValueError(f"ChunkedFeedForward: activation is {activation!r}; give one of {', '.join(ACTIVATIONS)}")
        self.chunk, self.activation = chunk, activation
        self.layer_norm = nn.LayerNorm(width, eps=epsilon)
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """The same as of all positions at once."""
        if not 0 < self.chunk < x.shape[1]:
            return self._one(x)
        return torch.cat([self._one(part) for part in x.split(self.chunk, dim=1)], dim=1)

    def _one(self, x: Float[Tensor, "B C E"]) -> Float[Tensor, "B C E"]:
        hidden = self.drop(self.inner(self.layer_norm(x)))
        return self.drop(self.outer(ACTIVATIONS[self.activation](hidden)))
